"""Dropout by a counter: whether place (row, column) stays is a function of the seed and the place alone.

Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with key = seed and
counter = (column // 4, row, 0, 0) gives the bits of four neighbouring columns; a place is kept when its upper
24 bits, as a number in [0, 1), are at least p. A mask is never stored: backward makes it again.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from owl_fast.kernels.launch import jit, tl

_MULTIPLIERS, _STEPS = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


class Dropout(NamedTuple):
    """probability: of dropping, below 1. seed: non-negative, below 2^63."""

    seed: int
    probability: float

    @classmethod
    def draw(cls, probability: float) -> Dropout:
        """With a seed from draw_seed."""
        return cls(draw_seed(), probability)

    @property
    def threshold(self) -> int:
        return round(self.probability * (1 << 24))

    @property
    def scale(self) -> float:
        """What kept values are multiplied by."""
        return 1.0 / (1.0 - self.probability)


def draw_seed() -> int:
    """The next of torch's CPU generator, so that no device is waited for.

    Odd and above 2^32: Triton compiles a kernel again for multiples of 16 and for small integers.
    """
    return int(torch.randint(1 << 32, 1 << 61, ())) * 2 + 1


@jit
def keep_mask(seed, threshold, rows, first, COLUMNS: tl.constexpr):
    """Whether the places (rows, first ... first + COLUMNS) are kept: bool (ROWS, COLUMNS), first % 4 == 0."""
    quads = first // 4 + tl.arange(0, COLUMNS // 4)
    none = rows[:, None] * 0 + quads[None, :] * 0
    a, b, c, d = tl.philox(seed, none + quads[None, :], none + rows[:, None], none, none)
    bits = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (rows.shape[0], COLUMNS))
    return (bits >> 8).to(tl.int32) >= threshold


def keep_mask_reference(dropout: Dropout, rows: int, columns: int) -> Tensor:
    """bool (rows, columns) on the CPU, as keep_mask makes it."""
    quads, line = torch.arange(-(-columns // 4)).expand(rows, -1), torch.arange(rows)[:, None]
    a, b, c, d = quads, line.expand_as(quads), torch.zeros_like(quads), torch.zeros_like(quads)
    low, high = dropout.seed & _LOW, dropout.seed >> 32
    for _ in range(10):
        # int64 products wrap, which leaves all 64 bits as they should be.
        by_a, by_c = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b = (by_c >> 32 & _LOW) ^ b ^ low, by_c & _LOW
        c, d = (by_a >> 32 & _LOW) ^ d ^ high, by_a & _LOW
        low, high = low + _STEPS[0] & _LOW, high + _STEPS[1] & _LOW
    bits = torch.stack((a, b, c, d), dim=-1).flatten(1)[:, :columns]
    return bits >> 8 >= dropout.threshold
