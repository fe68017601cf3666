"""Sums that come out the same everywhere: a library's order of summation depends on the processor."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def ordered_sum(x: Tensor) -> Tensor:
    """Sum over the last dimension, kept as 1: halves are added to each other until one number is left."""
    length = 1 << max(x.shape[-1] - 1, 0).bit_length()
    x = F.pad(x, (0, length - x.shape[-1]))
    while length > 1:
        length //= 2
        x = x[..., :length] + x[..., length:]
    return x
