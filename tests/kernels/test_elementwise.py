"""Layer norm, rotary, SwiGLU and QuickGELU references against float64."""

from __future__ import annotations

import math

import pytest
import torch

from owl_fast.kernels.layer_norm import layer_norm_reference
from owl_fast.kernels.quick_gelu import quick_gelu_reference
from owl_fast.kernels.rotary import rotary_reference, rotary_tables
from owl_fast.kernels.swiglu import swiglu_reference


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


@pytest.mark.parametrize("head_dim", [2, 16, 128])
def test_rotary_is_a_rotation_by_position(head_dim: int) -> None:
    positions = torch.tensor([0, 1, 5, 2047])
    x = torch.randn(4, 3, head_dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cos, sin = rotary_tables(positions, head_dim, 10000.0, torch.float64)
    out = rotary_reference(x, cos, sin)
    half = head_dim // 2
    frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float64) * 2 / head_dim)
    turn = torch.polar(torch.ones(4, 1, half, dtype=torch.float64), positions[:, None, None] * frequency)
    exact = torch.complex(x[..., :half], x[..., half:]) * turn
    assert (out - torch.cat((exact.real, exact.imag), -1)).abs().max() < 1e-3  # angles are float32 up to 2047
    assert torch.equal(out[0], x[0])  # position 0 does not turn


def test_swiglu_gates_the_second_half() -> None:
    gate, up = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    exact = gate / (1 + torch.exp(-gate)) * up
    assert (swiglu_reference(torch.cat((gate, up), -1)) - exact).abs().max() < 1e-12


def test_quick_gelu() -> None:
    x = torch.linspace(-6, 6, 101, dtype=torch.float64)
    exact = torch.tensor([v / (1 + math.exp(-1.702 * v)) for v in x.tolist()], dtype=torch.float64)
    assert (quick_gelu_reference(x) - exact).abs().max() < 1e-12
