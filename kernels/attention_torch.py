"""Softmax attention with gradients on a CPU, by the kernels that torch's own uses there.

They are called by name because what they make in forward, result and log of the sums, can then be kept where
a stretch of the model is computed again (kept.py). L rows, S keys, H heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from owl_fast.kernels.kept import kept

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attention_torch(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """query (N, L, H, D), key and value (N, S, K, D) on a CPU -> (N, L, H, D), with gradients.

    causal: row i sees keys up to i. K divides H; each key head serves H / K query heads.
    """
    device = query.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if (groups := query.shape[2] // key.shape[2]) > 1:
        key, value = (x.repeat_interleave(groups, dim=2) for x in (key, value))
    out: Tensor = _Attention.apply(query, key, value, causal)
    return out


def packed_attention_torch(query: Tensor, key: Tensor, value: Tensor, bounds: Sequence[int]) -> Tensor:
    """query (T, H, D), key and value (T, K, D) -> (T, H, D): as varlen_attention_reference."""
    lengths = [end - start for start, end in pairwise(bounds)]
    # split, not slices: the gradient of a slice is a tensor as large as the whole pack, once per sequence.
    parts = zip(*(torch.split(x, lengths) for x in (query, key, value)), strict=True)
    outputs = [attention_torch(q[None], k[None], v[None], causal=True)[0] for q, k, v in parts]
    return torch.cat(outputs) if outputs else query


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        out, sums = kept("attention", lambda: _forward(q, k, v, 0.0, causal))
        ctx.save_for_backward(query, key, value, out, sums)
        ctx.causal = causal
        return out.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, sums = ctx.saved_tensors
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        found = _backward(dout.transpose(1, 2), q, k, v, out, sums, 0.0, ctx.causal)
        return *(x.transpose(1, 2) for x in found), None
