"""int8, one scale per output row: W[n, k] = q[n, k] scale[n].

Packing takes elementwise operations and sums of a fixed order (exact.py): the same bytes on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from owl_fast import ops
from owl_fast.quantization.exact import ordered_sum

LARGEST = 127
# Tried scales, as parts of the one that holds the row's largest weight. In rows of 4096 normal numbers none
# below 0.9 wins, in heavy-tailed ones none below 1.
TRIED = (1.0, 0.975, 0.95, 0.925, 0.9)


def empty(rows: int, width: int) -> ops.Int8Weight:
    """Of this shape, on the default device."""
    return ops.Int8Weight(torch.empty(rows, width, dtype=torch.int8), torch.empty(rows))


def pack(weight: Tensor) -> ops.Int8Weight:
    """weight (N, K) of finite numbers -> the tried scales' nearest to it in the sum of squares."""
    weight = weight.float()
    widest = weight.abs().amax(-1, keepdim=True) / LARGEST
    scale, least = widest, _error(weight, widest)
    for part in TRIED[1:]:
        tried = widest * part
        error = _error(weight, tried)
        better = error < least
        scale, least = torch.where(better, tried, scale), torch.where(better, error, least)
    return ops.Int8Weight(_codes(weight, scale).to(torch.int8), scale[:, 0])


def plain(weight: Tensor) -> ops.Int8Weight:
    """The largest weight of each row at 127, the others rounded: what pack is measured against."""
    weight = weight.float()
    scale = weight.abs().amax(-1, keepdim=True) / LARGEST
    return ops.Int8Weight(_codes(weight, scale).to(torch.int8), scale[:, 0])


def _codes(weight: Tensor, scale: Tensor) -> Tensor:
    divisor = torch.where(scale == 0, 1.0, scale)
    return (weight / divisor).round_().clamp_(-LARGEST, LARGEST)


def _error(weight: Tensor, scale: Tensor) -> Tensor:
    return ordered_sum((_codes(weight, scale).mul_(scale) - weight).square_())
