"""Linear layer with low-rank updates on any subset of its output rows (LoRA, arXiv 2106.09685).

    y = x W^T + b;   y[rows] += scale * (dropout(x) A^T) B^T   for each update

Fused weights (q, k, v in one) keep one update per part, so each names the output rows it belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class LoraUpdate(NamedTuple):
    """One low-rank update: output rows [start, end), A (r, in), B (end - start, r)."""

    start: int
    end: int
    a: Tensor
    b: Tensor
    scale: float
    dropout: float  # 0 outside training


def lora_linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, updates: Sequence[LoraUpdate] = ()
) -> Tensor:
    """x (..., in), weight (out, in), bias (out,) or None -> (..., out)."""
    y = F.linear(x, weight, bias)
    for start, end, a, b, scale, dropout in updates:
        source = F.dropout(x, dropout) if dropout else x
        y[..., start:end] += scale * F.linear(F.linear(source, a.to(x.dtype)), b.to(x.dtype))
    return y
