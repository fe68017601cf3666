"""Rotary position embedding, half-split form (RoFormer, arXiv 2104.09864, in LLaMA's channel order).

For channel i < D/2 and angle t = position * theta^(-2i/D):
    y[i]       = x[i] cos t - x[i + D/2] sin t
    y[i + D/2] = x[i + D/2] cos t + x[i] sin t
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_tables(
    positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """positions (N,) -> cos, sin (N, D/2), computed in float32 and cast to dtype."""
    channels = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)
    inverse_frequency = 1.0 / theta ** (channels / head_dim)
    angles = positions.to(torch.float32)[:, None] * inverse_frequency
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotary_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (N, heads, D), cos and sin (N, D/2) -> (N, heads, D)."""
    low, high = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]  # (N, 1, D/2)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)
