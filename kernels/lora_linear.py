"""Linear layer with low-rank updates on any subset of its output rows (LoRA, arXiv 2106.09685).

    y = x W^T + b;   y[rows] += scale * (dropout(x) A^T) B^T   for each update

Fused weights (q, k, v in one) keep one update per part, so each names the output rows it belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from owl_fast.kernels.quick_gelu import quick_gelu_reference
from owl_fast.kernels.rms_norm import rms_norm_reference
from owl_fast.kernels.swiglu import swiglu_reference
from owl_fast.kernels.weights import StackedLora, Weight, dequantize


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


def fused_linear_reference(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    lora: StackedLora | None = None,
    *,
    norm: tuple[Tensor, float] | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """act(rms_norm(x) W^T + b + lora) + residual: x (M, K), W (N, K) -> (M, N), after "swiglu" (M, N / 2)."""
    if norm is not None:
        x = rms_norm_reference(x, *norm)
    y = F.linear(x, dequantize(weight, x.dtype), bias)
    if lora is not None:
        index = lora.index if lora.index is not None else x.new_zeros(len(x), dtype=torch.int32)
        own = index.clamp(min=0).long()
        low = torch.einsum("mk,mrk->mr", x, lora.a.to(x.dtype)[own]) * lora.scale.to(x.dtype)[own]
        update = torch.einsum("mr,mnr->mn", low, lora.b.to(x.dtype)[own])
        y = torch.where(index[:, None] < 0, y, y + update)
    if activation is not None:
        y = {"swiglu": swiglu_reference, "quick_gelu": quick_gelu_reference}[activation](y)
    return y if residual is None else y + residual
