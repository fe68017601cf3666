"""SwiGLU: reference and kernel against float64."""

from __future__ import annotations

import pytest
import torch

from owl_fast.kernels.swiglu import swiglu_reference, swiglu_triton
from tests.kernels.tensors import DTYPES, compare, random, strided


def test_swiglu_gates_the_second_half() -> None:
    gate, up = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    exact = gate / (1 + torch.exp(-gate)) * up
    assert (swiglu_reference(torch.cat((gate, up), -1)) - exact).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(0, 6), (1, 2), (3, 122), (2, 3, 256), (2, 4098)], ids=str)
@pytest.mark.usefixtures("poisoned")
def test_triton_matches_float64(device: torch.device, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = strided(random(*shape, dtype=dtype, device=device)).requires_grad_()
    compare(lambda x: swiglu_triton(x), lambda x: swiglu_reference(x), {"x": x})


@pytest.mark.filterwarnings(
    "ignore:overflow"
)  # numpy's, in the interpreter: exp becomes infinite, as it shall
def test_triton_large_gates(device: torch.device) -> None:
    """sigmoid saturates without becoming NaN, also in the gradient."""
    gate = torch.tensor([-200.0, -90.0, 90.0, 200.0], device=device)
    x = torch.cat((gate, torch.ones_like(gate)))[None].requires_grad_()
    compare(lambda x: swiglu_triton(x), lambda x: swiglu_reference(x), {"x": x})


def test_triton_refuses_what_does_not_fit(device: torch.device) -> None:
    for bad in (random(2, 7, device=device), random(2, 8, device=device).double()):
        with pytest.raises(ValueError, match="came; wanted"):
            swiglu_triton(bad)
