"""RMSNorm: the torch reference and libowl_cpu against float64."""

from __future__ import annotations

import ctypes
import math
import re
from functools import partial

import pytest
import torch

from owl_fast.kernels import rms_norm as rms_norm_module
from owl_fast.kernels.rms_norm import rms_norm_cpu, rms_norm_cpu_takes, rms_norm_reference, rms_norm_triton
from tests.kernels.tensors import CPU_DTYPES, DTYPES, compare, random, strided
from tests.tolerances import assert_as_good_as_torch

EPS = 1e-6
WIDTHS = (1, 7, 15, 16, 17, 61, 128, 4097)


def make(rows: int, width: int, dtype: torch.dtype, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1000 * rows + width)
    x = torch.randn(rows, width, generator=generator) * scale
    return x.to(dtype), torch.randn(width, generator=generator).to(dtype)


def truth_of(x: torch.Tensor, weight: torch.Tensor, eps: float = EPS) -> torch.Tensor:
    return rms_norm_reference(x.double(), weight.double(), eps)


def test_reference_is_the_formula() -> None:
    x = torch.tensor([[3.0, 4.0, 0.0], [1.0, -1.0, 1.0]], dtype=torch.float64)
    weight = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    eps = 0.5
    rms = [math.sqrt(25 / 3 + eps), math.sqrt(1 + eps)]
    expected = [[3 / rms[0], 8 / rms[0], 0.0], [1 / rms[1], -2 / rms[1], 3 / rms[1]]]
    torch.testing.assert_close(rms_norm_reference(x, weight, eps), torch.tensor(expected).double())


def test_reference_rounds_before_the_weight() -> None:
    """bf16: the scaled row is rounded first; one rounding at the end would give other bits."""
    x, weight = make(5, 128, torch.bfloat16)
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)
    ours = rms_norm_reference(x, weight, EPS)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, scaled.bfloat16() * weight)
    assert not torch.equal(ours, (scaled * weight.float()).bfloat16())


@pytest.mark.parametrize("dtype", CPU_DTYPES.values(), ids=CPU_DTYPES)
@pytest.mark.parametrize("width", WIDTHS, ids=lambda width: f"H{width}")
@pytest.mark.parametrize("rows", [0, 1, 3], ids=lambda rows: f"N{rows}")
def test_cpu_matches_float64(cpu_library: ctypes.CDLL, rows: int, width: int, dtype: torch.dtype) -> None:
    x, weight = make(rows, width, dtype)
    ours = rms_norm_cpu(cpu_library, x, weight, EPS)
    assert_as_good_as_torch(ours, rms_norm_reference(x, weight, EPS), truth_of(x, weight))


@pytest.mark.parametrize("dtype", CPU_DTYPES.values(), ids=CPU_DTYPES)
def test_cpu_rounds_as_torch_does(cpu_library: ctypes.CDLL, dtype: torch.dtype) -> None:
    """Small whole numbers: every order of summation is exact, so nothing but the rounding can differ."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randint(-64, 65, (33, 64), generator=generator).to(dtype)
    _, weight = make(1, 64, dtype)
    assert torch.equal(rms_norm_cpu(cpu_library, x, weight, EPS), rms_norm_reference(x, weight, EPS))


@pytest.mark.parametrize("scale", [1e-6, 1e3, 1e15], ids=str)
@pytest.mark.parametrize("dtype", CPU_DTYPES.values(), ids=CPU_DTYPES)
def test_cpu_small_and_large_values(cpu_library: ctypes.CDLL, dtype: torch.dtype, scale: float) -> None:
    x, weight = make(3, 61, dtype, scale)
    ours = rms_norm_cpu(cpu_library, x, weight, EPS)
    assert_as_good_as_torch(ours, rms_norm_reference(x, weight, EPS), truth_of(x, weight))


@pytest.mark.parametrize("dtype", CPU_DTYPES.values(), ids=CPU_DTYPES)
def test_cpu_row_does_not_depend_on_its_batch(cpu_library: ctypes.CDLL, dtype: torch.dtype) -> None:
    x, weight = make(7, 61, dtype)
    together = rms_norm_cpu(cpu_library, x, weight, EPS)
    alone = torch.cat([rms_norm_cpu(cpu_library, row[None], weight, EPS) for row in x])
    assert torch.equal(together, alone)
    assert torch.equal(together[2], rms_norm_cpu(cpu_library, x[2], weight, EPS))


@pytest.mark.parametrize("dtype", CPU_DTYPES.values(), ids=CPU_DTYPES)
def test_cpu_stays_inside_its_rows(cpu_library: ctypes.CDLL, dtype: torch.dtype) -> None:
    """NaN before and after the input never reaches the result, and nothing outside the output is written."""
    rows, width, guard = 3, 17, 32
    x, weight = make(rows, width, dtype)
    clean = rms_norm_cpu(cpu_library, x, weight, EPS)
    size = rows * width
    inside = slice(guard, guard + size)
    padded = torch.full((size + 2 * guard,), math.nan, dtype=dtype)
    padded[inside] = x.flatten()
    out = torch.full_like(padded, 7.0)
    function = getattr(cpu_library, {"fp32": "owl_rms_norm_f32", "bf16": "owl_rms_norm_bf16"}[name_of(dtype)])
    function(padded[inside].data_ptr(), weight.data_ptr(), out[inside].data_ptr(), rows, width, EPS)
    assert torch.equal(out[inside].view(rows, width), clean)
    assert (out[:guard] == 7.0).all()
    assert (out[guard + size :] == 7.0).all()


def name_of(dtype: torch.dtype) -> str:
    return next(name for name, value in CPU_DTYPES.items() if value == dtype)


@pytest.mark.parametrize("dtype", CPU_DTYPES.values(), ids=CPU_DTYPES)
def test_cpu_fills_every_output(
    cpu_library: ctypes.CDLL, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = make(3, 61, dtype)
    clean = rms_norm_cpu(cpu_library, x, weight, EPS)
    monkeypatch.setattr(torch, "empty_like", lambda like: torch.full_like(like, math.nan))
    assert torch.equal(rms_norm_cpu(cpu_library, x, weight, EPS), clean)


@pytest.mark.parametrize("dtype", CPU_DTYPES.values(), ids=CPU_DTYPES)
def test_cpu_keeps_nan_and_infinity_in_their_row(cpu_library: ctypes.CDLL, dtype: torch.dtype) -> None:
    x, weight = make(3, 17, dtype)
    x[1, 4] = math.nan
    x[2, 4] = math.inf
    ours = rms_norm_cpu(cpu_library, x, weight, EPS)
    plain = rms_norm_reference(x, weight, EPS)
    assert ours[0].isfinite().all()
    assert torch.equal(ours[1:].isnan(), plain[1:].isnan())


def test_cpu_takes() -> None:
    x, weight = make(4, 8, torch.float32)
    assert rms_norm_cpu_takes(x, weight)
    assert rms_norm_cpu_takes(x.view(2, 2, 8), weight)
    refused = {
        "strided rows": (x[:, :4], weight[:4]),
        "transposed": (x.t(), weight[:4]),
        "strided weight": (x[:, :4].contiguous(), weight[::2]),
        "other width": (x, weight[:4]),
        "mixed dtypes": (x, weight.bfloat16()),
        "half": (x.half(), weight.half()),
        "double": (x.double(), weight.double()),
        "no axis": (torch.tensor(1.0), weight),
    }
    assert {name for name, pair in refused.items() if rms_norm_cpu_takes(*pair)} == set()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("width", [2, 61, 128, 4097], ids=lambda width: f"H{width}")
@pytest.mark.parametrize("rows", [0, 1, 5], ids=lambda rows: f"N{rows}")
@pytest.mark.usefixtures("poisoned")
def test_triton_matches_float64(device: torch.device, rows: int, width: int, dtype: torch.dtype) -> None:
    x = strided(random(rows, width, dtype=dtype, device=device)).requires_grad_()
    weight = random(width, dtype=dtype, device=device).requires_grad_()
    compare(
        partial(rms_norm_triton, eps=EPS), partial(rms_norm_reference, eps=EPS), {"x": x, "weight": weight}
    )


def test_triton_rows_shared_by_few_programs(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rms_norm_module, "PROGRAMS", 3)
    x, weight = (random(*shape, device=device).requires_grad_() for shape in ((10, 17), (17,)))
    compare(
        partial(rms_norm_triton, eps=EPS), partial(rms_norm_reference, eps=EPS), {"x": x, "weight": weight}
    )


def test_triton_refuses_what_does_not_fit(device: torch.device) -> None:
    x, weight = random(2, 8, device=device), random(8, device=device)
    for bad_x, bad_weight, words in (
        (x.double(), weight.double(), "float64 (2, 8)"),
        (x, weight[:4], "float32 (4,)"),
        (x, weight.half(), "float16 (8,)"),
    ):
        with pytest.raises(ValueError, match=re.escape(words) + ".* came; wanted"):
            rms_norm_triton(bad_x, bad_weight, EPS)
