"""Sums that come out the same everywhere: a library's order of summation depends on the processor."""

from __future__ import annotations

from torch import Tensor


def ordered_sum(x: Tensor) -> Tensor:
    """Sum over the first dimension: the second half is added to the first until one row is left.

    Of an odd number of rows the last one is added to the first.
    """
    while len(x) > 1:
        half = len(x) // 2
        rest = x[2 * half :]
        x = x[:half] + x[half : 2 * half]
        if len(rest):
            x[0] += rest[0]
    return x[0]
