"""QuickGELU, with and without a bias: reference and kernel against float64."""

from __future__ import annotations

import math
import re

import pytest
import torch

from owl_fast.kernels import quick_gelu as quick_gelu_module
from owl_fast.kernels.quick_gelu import quick_gelu_reference, quick_gelu_triton
from tests.kernels.tensors import DTYPES, compare, random, strided


def test_quick_gelu() -> None:
    x = torch.linspace(-6, 6, 101, dtype=torch.float64)
    exact = torch.tensor([v / (1 + math.exp(-1.702 * v)) for v in x.tolist()], dtype=torch.float64)
    assert (quick_gelu_reference(x) - exact).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (3, 61), (2, 3, 128), (2, 2049)], ids=str)
@pytest.mark.usefixtures("poisoned")
def test_triton_matches_float64(device: torch.device, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = strided(random(*shape, dtype=dtype, device=device)).requires_grad_()
    compare(quick_gelu_triton, quick_gelu_reference, {"x": x})


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 7], ids=lambda rows: f"N{rows}")
@pytest.mark.usefixtures("poisoned")
def test_triton_with_bias(
    device: torch.device, rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick_gelu_module, "PROGRAMS", 3)
    x = strided(random(rows, 61, dtype=dtype, device=device)).requires_grad_()
    bias = random(61, dtype=dtype, device=device).requires_grad_()
    compare(quick_gelu_triton, quick_gelu_reference, {"x": x, "bias": bias})


def test_triton_with_a_frozen_bias(device: torch.device) -> None:
    x, bias = random(5, 61, device=device).requires_grad_(), random(61, device=device)
    compare(quick_gelu_triton, quick_gelu_reference, {"x": x, "bias": bias})


def test_triton_refuses_what_does_not_fit(device: torch.device) -> None:
    x = random(2, 8, device=device)
    for bad_x, bad_bias, words in ((x.double(), None, "float64 (2, 8)"), (x, x[0, :4], "float32 (4,)")):
        with pytest.raises(ValueError, match=re.escape(words) + ".* came; wanted"):
            quick_gelu_triton(bad_x, bad_bias)
