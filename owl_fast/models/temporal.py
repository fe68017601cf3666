"""What the video release adds to the vision tower: each layer first looks at the frames before and after.

B videos, T frames, P patches, E width, D = E / 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from owl_fast import ops
from owl_fast.models.layers import LayerNorm

NORM_EPS = 1e-5


class Convolution(nn.Module):
    """Weight and bias of a 3-d convolution over (time, row, column), in the checkpoint's shapes."""

    def __init__(self, out_channels: int, in_channels: int, frames: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, frames, 1, 1))
        self.bias = nn.Parameter(torch.empty(out_channels))

    def pointwise(self, x: Tensor) -> Tensor:
        """A kernel of one frame, row and column is a linear layer: (..., in) -> (..., out)."""
        return F.linear(x, self.weight.flatten(1), self.bias)

    def over_time(self, x: Tensor) -> Tensor:
        """One kernel of three frames for each channel, zeros outside the video: (B, T, P, D) -> the same."""
        before, here, after = self.weight.flatten(1).unbind(1)  # (D,) each
        padded = F.pad(x, (0, 0, 0, 0, 1, 1))  # (B, T + 2, P, D)
        return padded[:, :-2] * before + x * here + padded[:, 2:] * after + self.bias


class LocalTemporal(nn.Module):
    """Features of all frames (B * T, 1 + P, E) -> what is to be added to them, of the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln = LayerNorm(width, NORM_EPS)
        self.down_proj = Convolution(width // 2, width)
        self.conv = Convolution(width // 2, 1, frames=3)
        self.up_proj = Convolution(width, width // 2)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        rows = self.down_proj.pointwise(self.ln(x[:, 1:]))  # (B * T, P, D)
        rows = self.conv.over_time(rows.view(-1, frames, *rows.shape[1:]))  # (B, T, P, D)
        rows = ops.quick_gelu(rows).flatten(0, 1)
        # The class row is handed on as it is, as released: the sum doubles it.
        return torch.cat((x[:, :1], self.up_proj.pointwise(rows)), dim=1)
