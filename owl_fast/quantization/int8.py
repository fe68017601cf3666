"""int8, one scale per output row: W[n, k] = q[n, k] scale[n].

Packing takes elementwise operations and sums of a fixed order (ordered_sum.py): the same bytes on every
device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from owl_fast import ops
from owl_fast.quantization.ordered_sum import ordered_sum

LARGEST, LARGEST_INVERSE = 127, 3e38
# Tried scales, as parts of the one that holds the row's largest weight. In rows of 4096 normal numbers none
# below 0.9 wins, in heavy-tailed ones none below 1.
TRIED = (1.0, 0.975, 0.95, 0.925, 0.9)


def empty(rows: int, width: int) -> ops.Int8Weight:
    """Of this shape, on the default device."""
    return ops.Int8Weight(torch.empty(rows, width, dtype=torch.int8), torch.empty(rows))


def pack(weight: Tensor) -> ops.Int8Weight:
    """weight (N, K) of finite numbers -> the tried scales' nearest to it in the sum of squares."""
    columns = _columns(weight)
    widest = columns.abs().amax(0) / LARGEST
    scale, least = widest, _error(columns, widest)
    for part in TRIED[1:]:
        tried = widest * part
        error = _error(columns, tried)
        better = error < least
        scale, least = torch.where(better, tried, scale), torch.where(better, error, least)
    return _packed(columns, scale)


def plain(weight: Tensor) -> ops.Int8Weight:
    """The largest weight of each row at 127, the others rounded: what pack is measured against."""
    columns = _columns(weight)
    return _packed(columns, columns.abs().amax(0) / LARGEST)


def _columns(weight: Tensor) -> Tensor:
    """(K, N) in float32: what is done to all rows runs over neighbours in memory."""
    return weight.float().T.contiguous()


def _codes(columns: Tensor, scale: Tensor) -> Tensor:
    inverse = (1 / scale).clamp_(max=LARGEST_INVERSE)  # of 0, and of numbers close to it
    return (columns * inverse).round_().clamp_(-LARGEST, LARGEST)


def _error(columns: Tensor, scale: Tensor) -> Tensor:
    return ordered_sum(_codes(columns, scale).mul_(scale).sub_(columns).square_())


def _packed(columns: Tensor, scale: Tensor) -> ops.Int8Weight:
    return ops.Int8Weight(_codes(columns, scale).to(torch.int8).T.contiguous(), scale)
