"""Layer norm and activations in libowl_cpu: each instruction set against float64, rows by themselves."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor

from owl_fast import native, ops
from owl_fast.kernels.dequantize import dequantize_cpu
from owl_fast.kernels.layer_norm import layer_norm_cpu, layer_norm_reference
from owl_fast.kernels.quick_gelu import quick_gelu_cpu, quick_gelu_reference
from owl_fast.kernels.rms_norm import rms_norm_gradient_cpu, rms_norm_reference
from owl_fast.kernels.swiglu import swiglu_cpu, swiglu_gradient_cpu, swiglu_reference
from owl_fast.kernels.weights import dequantize
from tests.kernels.tensors import CPU_DTYPES, quantized
from tests.kernels.tensors import random as random_on
from tests.tolerances import assert_as_good_as_torch

random = partial(random_on, device=torch.device("cpu"))
EPS = 1e-5
Run = Callable[..., Tensor]


def layer_norm(run: Run, x: Tensor, **options: int | None) -> Tensor:
    weight, bias = (random(x.shape[-1], seed=seed).to(x.dtype) for seed in (1, 2))
    return run(x, weight, bias, EPS, **options)


def bare_norm(run: Run, x: Tensor, **options: int | None) -> Tensor:
    return run(x, None, None, EPS, **options)


def gelu(run: Run, x: Tensor, **options: int | None) -> Tensor:
    return run(x, random(x.shape[-1], seed=3).to(x.dtype), **options)


def plain(run: Run, x: Tensor, **options: int | None) -> Tensor:
    return run(x, **options)


def gate_gradient(run: Run, x: Tensor, **options: int | None) -> Tensor:
    dy = random(x.shape[-1] // 2, seed=4).to(x.dtype)  # the same for every row
    return run(x, dy.expand(*x.shape[:-1], -1), **options)


def norm_gradient(run: Run, x: Tensor, **options: int | None) -> Tensor:
    weight, dy = (random(x.shape[-1], seed=seed).to(x.dtype) for seed in (1, 5))
    return run(x, weight, dy.expand(x.shape), EPS, **options)


def swiglu_gradient_reference(x: Tensor, dy: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(swiglu_reference(x), x, dy)[0]


def norm_gradient_reference(x: Tensor, weight: Tensor, dy: Tensor, eps: float) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(rms_norm_reference(x, weight, eps), x, dy)[0]


# How to call it, ours, the reference.
OPERATIONS = {
    "layer_norm": (layer_norm, layer_norm_cpu, layer_norm_reference),
    "bare_norm": (bare_norm, layer_norm_cpu, layer_norm_reference),
    "quick_gelu": (plain, quick_gelu_cpu, quick_gelu_reference),
    "quick_gelu-bias": (gelu, quick_gelu_cpu, quick_gelu_reference),
    "swiglu": (plain, swiglu_cpu, swiglu_reference),
    "swiglu-gradient": (gate_gradient, swiglu_gradient_cpu, swiglu_gradient_reference),
    "rms_norm-gradient": (norm_gradient, rms_norm_gradient_cpu, norm_gradient_reference),
}
Operation = tuple[Run, Run, Run]
operations = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
dtypes = pytest.mark.parametrize("dtype", CPU_DTYPES.values(), ids=CPU_DTYPES)


@pytest.fixture(scope="module")
def pool(cpu_library: ctypes.CDLL) -> Iterator[int | None]:
    made = native.Pool(cpu_library, 3)
    yield made.handle
    made.close()


@operations
@dtypes
@pytest.mark.parametrize("width", [2, 14, 32, 122, 1024, 8194], ids=lambda width: f"H{width}")
@pytest.mark.parametrize("rows", [0, 1, 5], ids=lambda rows: f"N{rows}")
@pytest.mark.usefixtures("poisoned")
def test_matches_float64(
    cpu_library: ctypes.CDLL, path: int, rows: int, width: int, dtype: torch.dtype, operation: Operation
) -> None:
    call, ours, reference = operation
    x = random(rows, width, dtype=dtype, scale=3.0)
    found = call(partial(ours, cpu_library), x, path=path)
    exact = call(lambda y, *more: reference(y.double(), *(_wide(z) for z in more)), x)
    assert_as_good_as_torch(found, call(reference, x), exact)


def _wide(x: object) -> object:
    return x.double() if isinstance(x, Tensor) else x


@operations
@dtypes
def test_a_rows_bits_are_its_own(
    cpu_library: ctypes.CDLL, path: int, pool: int | None, dtype: torch.dtype, operation: Operation
) -> None:
    call, ours, _ = operation
    x = random(64, 1030, dtype=dtype)
    run = partial(ours, cpu_library)
    alone = torch.cat([call(run, row[None], path=path) for row in x])
    for rows in (1, 2, 33, 64):
        assert torch.equal(call(run, x[:rows], path=path, pool=pool), alone[:rows])


@operations
@dtypes
def test_small_large_and_not_finite(
    cpu_library: ctypes.CDLL, path: int, dtype: torch.dtype, operation: Operation
) -> None:
    """Gates far outside of exp's range; NaN and infinity stay in their row, where torch has them, too."""
    call, ours, reference = operation
    x = random(6, 62, dtype=dtype)
    x[0] *= 1e3
    x[1] *= 1e-20
    x[2, 3], x[3, 40], x[4, 5] = math.nan, math.inf, -math.inf
    found, torchs = call(partial(ours, cpu_library), x, path=path), call(reference, x)
    assert torch.equal(found.isnan(), torchs.isnan())
    assert torch.equal(found.isinf(), torchs.isinf())
    kept = [0, 1, 5]
    exact = call(lambda y, *more: reference(y.double(), *(_wide(z) for z in more)), x[kept])
    assert_as_good_as_torch(found[kept], torchs[kept], exact)


def test_ops_use_it_where_no_gradient_is_wanted(cpu_library: ctypes.CDLL) -> None:
    x = random(3, 64)
    assert torch.equal(ops.swiglu(x), swiglu_cpu(cpu_library, x))
    assert torch.equal(ops.quick_gelu(x), quick_gelu_cpu(cpu_library, x))
    assert torch.equal(ops.layer_norm(x, None, None, EPS), layer_norm_cpu(cpu_library, x, None, None, EPS))
    x.requires_grad_()
    for run in (ops.swiglu, ops.quick_gelu, lambda y: ops.layer_norm(y, None, None, EPS)):
        assert run(x).requires_grad
    x = x.detach()
    for rows in (x[:1].expand(4, -1), x.t()[:2].expand(3, -1, -1)):  # as it would be if it were dense
        assert torch.equal(ops.swiglu(rows[..., :2]), ops.swiglu(rows[..., :2].clone()))
        assert torch.equal(ops.quick_gelu(rows), ops.quick_gelu(rows.clone()))
        norm = partial(ops.layer_norm, weight=None, bias=None, eps=EPS)
        assert torch.equal(norm(rows), norm(rows.clone()))


@dtypes
@pytest.mark.parametrize("width", [1, 61, 128, 1030, 2051], ids=lambda width: f"K{width}")
@pytest.mark.parametrize("kind", ["int8", "int4-g5", "int4-g32", "int4-g48", "int4-g128"])
@pytest.mark.usefixtures("poisoned")
def test_weights_written_out_have_the_references_bits(
    cpu_library: ctypes.CDLL, path: int, pool: int | None, kind: str, width: int, dtype: torch.dtype
) -> None:
    weight = quantized(kind, 67, width, torch.device("cpu"))
    wanted = dequantize(weight, dtype)
    assert torch.equal(dequantize_cpu(cpu_library, weight, dtype, pool, path), wanted)
    some = weight._replace(q=weight.q[3:9], scale=weight.scale[3:9])
    assert torch.equal(dequantize_cpu(cpu_library, some, dtype, None, path), wanted[3:9])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16, torch.float64])
def test_ops_write_weights_out(cpu_library: ctypes.CDLL, dtype: torch.dtype) -> None:
    for kind in ("int8", "int4-g32"):
        weight = quantized(kind, 9, 70, torch.device("cpu"))
        assert torch.equal(ops.dequantize(weight, dtype), dequantize(weight, dtype))


def test_ops_take_its_gradients_where_weights_are_frozen(cpu_library: ctypes.CDLL) -> None:
    x = random(5, 64).requires_grad_()
    weight = random(64, seed=1)
    (dx,) = torch.autograd.grad(ops.rms_norm(x, weight, EPS), x, torch.ones(5, 64))
    assert torch.equal(dx, rms_norm_gradient_cpu(cpu_library, x, weight, torch.ones(5, 64), EPS))
    (dx,) = torch.autograd.grad(ops.swiglu(x), x, torch.ones(5, 32))
    assert torch.equal(dx, swiglu_gradient_cpu(cpu_library, x, torch.ones(5, 32)))
    dx, dweight = torch.autograd.grad(
        ops.rms_norm(x, weight.requires_grad_(), EPS), (x, weight), torch.ones(5, 64)
    )
    torch.testing.assert_close(dx, rms_norm_gradient_cpu(cpu_library, x, weight, torch.ones(5, 64), EPS))
    assert dweight.shape == weight.shape
