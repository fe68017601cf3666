"""Rotary reference against float64."""

from __future__ import annotations

import pytest
import torch

from owl_fast.kernels.rotary import rotary_reference, rotary_tables


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
