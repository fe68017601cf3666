"""Linear layers with quantized weights on the CPU: each instruction set against the reference."""

from __future__ import annotations

import ctypes
import math
import subprocess
import sys
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from owl_fast import native, ops
from owl_fast.kernels.linear_cpu import linear_cpu, paths
from owl_fast.kernels.quantized_linear import (
    INT8_GROUP,
    TINY,
    pack,
    quantize_rows_reference,
    quantized_linear_reference,
    unpack,
)
from owl_fast.kernels.weights import Int4Weight, Int8Weight, dequantize
from tests.kernels.tensors import random as random_on

random = partial(random_on, device=torch.device("cpu"))
FP32_ROUNDING = 2.0**-22  # of each group's addition, relative to the sum of magnitudes
FORMS = ("int8", "int4-G32", "int4-G32-narrow", "int4-G64", "int4-G128")
SHAPES = {
    "N16-K128": (16, 128),
    "N1-K1": (1, 1),
    "N5-K7": (5, 7),
    "N33-K300": (33, 300),
    "N80-K515": (80, 515),
}


def weight_of(form: str, outputs: int, inputs: int) -> Int8Weight | Int4Weight:
    """Every value there is, the extreme ones often."""
    generator = torch.Generator().manual_seed(outputs + inputs)
    low, high = (-128, 127) if form == "int8" else (0, 15)
    values = torch.randint(low - 9, high + 10, (outputs, inputs), generator=generator).clamp_(low, high)
    if form == "int8":
        return Int8Weight(values.to(torch.int8), random(outputs, seed=1).abs() / 64)
    group = int(form.partition("-G")[2].removesuffix("-narrow"))
    pairs = torch.nn.functional.pad(values.to(torch.uint8), (0, inputs % 2), value=15).view(
        outputs, (inputs + 1) // 2, 2
    )
    scale = random(outputs, -(-inputs // group), seed=2).half()
    if form.endswith("-narrow"):
        scale = (scale.view(torch.int16) & ~0x407F).view(torch.float16)
    return Int4Weight(pairs[..., 0] | pairs[..., 1] << 4, scale, inputs, group)


def rows_of(count: int, inputs: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of every size, with groups of zeros among them."""
    x = random(count, inputs, seed=3) * torch.logspace(-8, 8, max(count, 1))[:count, None]
    x[::3, :32] = 0
    return x.to(dtype)


def assert_close(ours: Tensor, x: Tensor, weight: Int8Weight | Int4Weight) -> None:
    """Within the rounding of one addition per group, and of bf16 where the result has it."""
    exact = quantized_linear_reference(x.double(), weight)
    group = weight.group if isinstance(weight, Int4Weight) else INT8_GROUP
    size = x.double().abs() @ dequantize(weight, torch.float64).abs().T
    limit = size * FP32_ROUNDING * (3 + x.shape[-1] / group)
    if ours.dtype == torch.bfloat16:
        limit += exact.abs() * 2.0**-8
    assert ours.dtype == x.dtype
    assert bool(((ours.double() - exact).abs() <= limit).all())


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("form", [*FORMS, "int4-G6", "int4-G384"])
def test_packing_loses_nothing(cpu_library: ctypes.CDLL, form: str, shape: tuple[int, int]) -> None:
    weight = weight_of(form, *shape)
    tiled = pack(cpu_library, weight)
    assert tiled.narrow == form.endswith("-narrow") or shape == (1, 1)
    found = unpack(tiled)
    assert type(found) is type(weight)
    assert torch.equal(found.scale, weight.scale)
    assert torch.equal(dequantize(found, torch.float64), dequantize(weight, torch.float64))


def test_reference_is_the_formula() -> None:
    """Two groups, their largest inputs 127 and 0.5; -2.5 is a tie."""
    x = torch.tensor([[127.0, -2.5, 0.5]])
    q, scale = quantize_rows_reference(x, 2)
    assert q.tolist() == [[127.0, -2.0, 127.0]]
    assert scale.tolist() == [[1.0, torch.tensor(0.5 / 127.0).item()]]
    values, scales = torch.tensor([[0xA9, 0x04]], dtype=torch.uint8), torch.tensor([[2.0, 4.0]]).half()
    expected = (127 * 1 - 2 * 2) * 2 + 0.5 * -4 * 4
    y = quantized_linear_reference(x.double(), Int4Weight(values, scales, 3, 2))
    assert y.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("form", FORMS)
def test_matches_the_reference(
    cpu_library: ctypes.CDLL, cpu_path: int, form: str, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    weight = weight_of(form, *shape)
    packed = pack(cpu_library, weight)
    for rows in (0, 1, 3, 13):
        x = rows_of(rows, shape[1], dtype)
        assert_close(linear_cpu(cpu_library, x, packed, path=cpu_path), x, weight)


@pytest.mark.parametrize("form", FORMS)
def test_bits_do_not_depend_on_rows_threads_or_path(cpu_library: ctypes.CDLL, form: str) -> None:
    weight = pack(cpu_library, weight_of(form, 165, 515))
    x = rows_of(64, 515)
    expected = torch.cat([linear_cpu(cpu_library, row[None], weight) for row in x])
    pools = [native.Pool(cpu_library, threads) for threads in (1, 2, 3)]
    try:
        for path in range(len(paths(cpu_library))):
            for rows in (*range(1, 28), 63, 64):
                for pool in pools:
                    found = linear_cpu(cpu_library, x[:rows], weight, pool=pool.handle, path=path)
                    assert torch.equal(found, expected[:rows]), (path, rows, pool.threads)
    finally:
        for pool in pools:
            pool.close()


@pytest.mark.parametrize("form", ["int8", "int4-G64", "int4-G32-narrow"])
def test_every_weight_meets_every_input(cpu_library: ctypes.CDLL, cpu_path: int, form: str) -> None:
    """The largest weights against the largest inputs: nothing saturates in any of the paths."""
    low, high = (-128, 127) if form == "int8" else (0, 15)
    for a in (low, high):
        for b in (low, high):
            weight = weight_of(form, 17, 256)
            if isinstance(weight, Int8Weight):
                weight.q[:, ::2], weight.q[:, 1::2] = a, b
            else:
                weight.q[:] = a | b << 4
            for signs in ((1, 1), (1, -1), (-1, -1)):
                x = torch.tensor(signs * 128).float()[None]
                y = linear_cpu(cpu_library, x, pack(cpu_library, weight), path=cpu_path)
                assert_close(y, x, weight)


@pytest.mark.parametrize("form", ["int8", "int4-G64", "int4-G32-narrow"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_a_row_that_is_not_finite_is_nan(
    cpu_library: ctypes.CDLL, cpu_path: int, form: str, value: float
) -> None:
    weight = weight_of(form, 20, 200)
    x = rows_of(5, 200)
    packed = pack(cpu_library, weight)
    clean = linear_cpu(cpu_library, x, packed, path=cpu_path)
    x[2, 77] = value
    found = linear_cpu(cpu_library, x, packed, path=cpu_path)
    assert bool(found[2].isnan().all())
    assert bool(quantized_linear_reference(x, weight)[2].isnan().all())
    kept = [0, 1, 3, 4]
    assert torch.equal(found[kept], clean[kept])


@pytest.mark.parametrize("form", ["int8", "int4-G64", "int4-G32-narrow"])
def test_small_and_large_inputs(cpu_library: ctypes.CDLL, cpu_path: int, form: str) -> None:
    weight = weight_of(form, 16, 128)
    if isinstance(weight, Int8Weight):
        weight.scale.fill_(2.0**-20)
    else:
        weight.scale.fill_(2.0**-14)
    packed = pack(cpu_library, weight)
    for size in (TINY, 2.0**-126, 2.0**-149, 3e38):
        x = random(2, 128, seed=4).clamp(-1, 1) * size
        x[:, 5] = size
        y = linear_cpu(cpu_library, x, packed, path=cpu_path)
        assert_close(y, x, weight) if size >= TINY else assert_zero(y)


def assert_zero(y: Tensor) -> None:
    assert not bool(y.any())


def test_scales_of_every_kind(cpu_library: ctypes.CDLL, cpu_path: int) -> None:
    """All 65536 patterns of fp16: below the normal ones, infinite, NaN."""
    scale = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.float16)[:, None]
    weight = Int4Weight(torch.full((65536, 1), 9, dtype=torch.uint8), scale, 1, 32)
    y = linear_cpu(cpu_library, torch.tensor([[127.0]]), pack(cpu_library, weight), path=cpu_path)
    expected = torch.full((), 127.0) * scale.float().T
    assert torch.equal(y.nan_to_num(1234.5), expected.nan_to_num(1234.5))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 30),
    outputs=st.integers(0, 70),
    inputs=st.integers(1, 400),
    group=st.sampled_from([0, 2, 6, 32, 64, 96, 128, 256]),
)
def test_any_shape(cpu_library: ctypes.CDLL, rows: int, outputs: int, inputs: int, group: int) -> None:
    weight = weight_of(f"int4-G{group}" if group else "int8", outputs, inputs)
    packed = pack(cpu_library, weight)
    x = rows_of(rows, inputs)
    first = linear_cpu(cpu_library, x, packed)
    assert_close(first, x, weight)
    for path in range(1, len(paths(cpu_library))):
        assert torch.equal(linear_cpu(cpu_library, x, packed, path=path), first)


def test_shapes_and_strides_of_x(cpu_library: ctypes.CDLL) -> None:
    weight = pack(cpu_library, weight_of("int8", 9, 40))
    x = random(2, 3, 80, seed=5)[..., ::2]
    y = linear_cpu(cpu_library, x, weight)
    assert y.shape == (2, 3, 9)
    assert torch.equal(y[1, 2], linear_cpu(cpu_library, x[1, 2], weight))


def test_what_does_not_fit_is_refused(cpu_library: ctypes.CDLL) -> None:
    good = weight_of("int4-G32", 4, 64)
    for weight in (
        good._replace(q=good.q[:, :-1].contiguous()),
        good._replace(q=good.q.T.contiguous().T),
        good._replace(scale=good.scale.float()),
        Int8Weight(torch.zeros(4, 8, dtype=torch.int8), torch.zeros(3)),
    ):
        with pytest.raises(ValueError, match=r"came; wanted a contiguous"):
            pack(cpu_library, weight)
    packed = pack(cpu_library, good)
    for x in (torch.zeros(2, 63), torch.zeros(2, 64, dtype=torch.float64), torch.zeros(2, 64, device="meta")):
        with pytest.raises(ValueError, match=r"came; wanted fp32 or bf16 \(..., 64\) on the CPU"):
            linear_cpu(cpu_library, x, packed)
    with pytest.raises(ValueError, match=r"path 9 came; wanted one of"):
        linear_cpu(cpu_library, torch.zeros(2, 64), packed, path=9)


def test_ops_unpack_what_the_library_does_not_run(cpu_library: ctypes.CDLL) -> None:
    """float64, gradients, interpreted kernels, and no library at all: as the weight that was packed."""
    weight = weight_of("int8", 24, 64)
    tiled = ops.tiled(weight)
    assert tiled is not None
    x = random(5, 64).double()
    assert torch.equal(ops.lora_linear(x, tiled), ops.lora_linear(x, weight))
    narrow = x.float().requires_grad_()
    y = ops.lora_linear(narrow, tiled)
    assert torch.equal(y, ops.lora_linear(narrow, weight))
    y.sum().backward()
    assert narrow.grad is not None


def test_a_pool_serves_several_threads_and_a_fork(cpu_library: ctypes.CDLL) -> None:
    """In a process of its own: forks and threads do not belong into that of the tests."""
    code = """
import os, threading, time, torch
from owl_fast import native, ops
from owl_fast.kernels.weights import Int8Weight
weight = Int8Weight(torch.randint(-128, 128, (300, 256), dtype=torch.int8), torch.rand(300))
tiled, x = ops.tiled(weight), torch.randn(20, 256)
expected = ops.lora_linear(x, tiled)
def work():
    for _ in range(200):
        assert torch.equal(ops.lora_linear(x, tiled), expected)
        done.append(1)
done = []
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(done) == 600
before = native.pool()
def count(): return len(os.listdir("/proc/self/task"))
child = os.fork()
if child == 0:
    alone = native._pool is None and torch.equal(ops.lora_linear(x, tiled), expected)
    native.close_pool()
    os._exit(0 if alone else 1)
assert os.waitpid(child, 0)[1] == 0
time.sleep(0.5)  # ended threads stay listed for a moment; a fork ends those of numpy's OpenBLAS
running = count()
native.close_pool()
native.close_pool()
assert count() == running - (len(os.sched_getaffinity(0)) - 1), (count(), running)
assert torch.equal(ops.lora_linear(x, tiled), expected)
print("fine")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stdout, done.returncode) == ("fine\n", 0), done.stderr
