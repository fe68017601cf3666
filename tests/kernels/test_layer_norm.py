"""Layer norm: reference and kernel against float64."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
from torch import Tensor

from owl_fast.kernels import layer_norm as layer_norm_module
from owl_fast.kernels.layer_norm import layer_norm_reference, layer_norm_triton
from tests.kernels.tensors import DTYPES, compare, random, strided

EPS = 1e-5
OURS, REFERENCE = partial(layer_norm_triton, eps=EPS), partial(layer_norm_reference, eps=EPS)


def test_layer_norm_keeps_float32_statistics_in_bf16() -> None:
    x = torch.randn(7, 63, generator=torch.Generator().manual_seed(0)) + 100.0  # bf16 sums would be far off
    weight, bias = torch.linspace(0.5, 2.0, 63), torch.linspace(-1.0, 1.0, 63)
    half = [t.bfloat16() for t in (x, weight, bias)]
    wide = half[0].double()
    normed = (wide - wide.mean(-1, keepdim=True)) / (wide.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    exact = normed * half[1].double() + half[2].double()
    out = layer_norm_reference(*half, 1e-6)
    assert out.dtype == torch.bfloat16
    half_ulp = exact.abs() * 2**-8  # the result is rounded once, at the end
    assert ((out.double() - exact).abs() <= half_ulp + 1e-4).all()


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("width", [1, 61, 128, 4097], ids=lambda width: f"H{width}")
@pytest.mark.parametrize("rows", [0, 1, 5], ids=lambda rows: f"N{rows}")
@pytest.mark.usefixtures("poisoned")
def test_triton_matches_float64(device: torch.device, rows: int, width: int, dtype: torch.dtype) -> None:
    x = strided(random(rows, width, dtype=dtype, device=device)).requires_grad_()
    weight, bias = (random(width, dtype=dtype, device=device, seed=s).requires_grad_() for s in (1, 2))
    compare(OURS, REFERENCE, {"x": x, "weight": weight, "bias": bias})


@pytest.mark.usefixtures("poisoned")
def test_triton_without_scale_and_shift(device: torch.device) -> None:
    x = strided(random(3, 5, 61, dtype=torch.bfloat16, device=device)).requires_grad_()
    compare(partial(OURS, weight=None, bias=None), partial(REFERENCE, weight=None, bias=None), {"x": x})


@pytest.mark.usefixtures("poisoned")
def test_triton_trains_the_norm_alone(device: torch.device) -> None:
    """float32 parameters of a half-precision model, below which nothing trains."""
    x = random(7, 61, dtype=torch.bfloat16, device=device)
    weight, bias = (random(61, device=device, seed=s).requires_grad_() for s in (1, 2))
    compare(OURS, REFERENCE, {"x": x, "weight": weight, "bias": bias})


def test_triton_statistics_far_from_zero(device: torch.device) -> None:
    """A mean of a thousand deviations: sums of squares instead of squared differences would lose it."""
    x = (random(3, 128, device=device) + 1000.0).requires_grad_()
    compare(partial(OURS, weight=None, bias=None), partial(REFERENCE, weight=None, bias=None), {"x": x})


def test_triton_rows_shared_by_few_programs(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_norm_module, "PROGRAMS", 2)
    x, weight, bias = (random(*s, device=device).requires_grad_() for s in ((13, 1030), (1030,), (1030,)))
    compare(OURS, REFERENCE, {"x": x, "weight": weight, "bias": bias})


def test_triton_repeats_to_the_bit(device: torch.device) -> None:
    x = random(9, 61, device=device).requires_grad_()
    weight, bias = (random(61, device=device, seed=s).requires_grad_() for s in (1, 2))

    def once() -> list[Tensor]:
        y = OURS(x, weight, bias)
        return [y, *torch.autograd.grad(y, (x, weight, bias), torch.ones_like(y))]

    for one, other in zip(once(), once(), strict=True):
        assert torch.equal(one, other)


def test_triton_refuses_what_does_not_fit(device: torch.device) -> None:
    x, weight = random(2, 8, device=device), random(8, device=device)
    for bad_x, bad_weight, words in (
        (x.double(), weight, "float64 (2, 8)"),
        (x, weight[:4], "float32 (4,)"),
        (x, random(16, device=device)[::2], "float32 (8,)"),
    ):
        with pytest.raises(ValueError, match=re.escape(words) + ".* came; wanted"):
            layer_norm_triton(bad_x, bad_weight, None, EPS)
