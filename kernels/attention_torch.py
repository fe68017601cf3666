"""Softmax attention with gradients on a CPU: backward is made of torch's matrix products.

Kept for backward are query, key and value alone; the weights P = softmax(S) are made again, some queries at a
time. S and dP are computed in float32 whatever the inputs are; P and dS are rounded to their dtype.

    S = s Q K^T   dV = P^T dO   dP = dO V^T   dS = s P (dP - rowsum(P dP))   dQ = dS K   dK = dS^T Q

L rows, M keys, H heads, D head width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from owl_fast.kernels.autocast import as_autocast
from owl_fast.kernels.kept import kept

BLOCK = 1 << 20  # numbers of P at a time: 4 MB
LEAST = 64  # rows of a block: smaller products are slow

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def attention_torch(
    query: Tensor, key: Tensor, value: Tensor, bounds: Sequence[int] | None, attend: Attend
) -> Tensor:
    """attend(query, key, value), with gradients.

    Packed and causal: query (T, H, D), key and value (T, K, D), bounds (B + 1) of the sequences, where K
    divides H. Unmasked: query (N, L, H, D), key and value (N, M, H, D), no bounds.
    """
    query, key, value = as_autocast(query, key, value)
    out: Tensor = _Attention.apply(query, key, value, bounds, attend)
    return out


def attention_bytes(length: int, heads: int, width: int, itemsize: int) -> int:
    """What backward takes for a while, gradients not counted, of sequences of that length. width: of all
    heads together."""
    copies = length * width * (4 * itemsize + 6 * 4)  # of what goes in, and dK and dV
    return copies + 3 * 4 * length * min(heads * length, max(BLOCK // length, heads * LEAST))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bounds: Sequence[int] | None, attend: Attend
    ) -> Tensor:
        (out,) = kept("attention", lambda: (attend(query, key, value),))
        ctx.save_for_backward(query, key, value)
        ctx.bounds = bounds
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors
        gradients = tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs)
        if ctx.bounds is None:
            for picture in range(len(dout)):
                _gradients(False, *(x[picture] for x in (*inputs, dout, *gradients)))
        else:
            for start, end in pairwise(ctx.bounds):
                _gradients(True, *(x[start:end] for x in (*inputs, dout, *gradients)))
        return *gradients, None, None


def _gradients(
    causal: bool,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dout: Tensor,
    dquery: Tensor,
    dkey: Tensor,
    dvalue: Tensor,
) -> None:
    """Of one sequence: query, dout (L, H, D), key, value (M, K, D) -> the last three, written."""
    groups, scale = query.shape[1] // key.shape[1], query.shape[2] ** -0.5
    low, wide = query.dtype, torch.promote_types(query.dtype, torch.float32)
    q, do = (x.transpose(0, 1).contiguous() for x in (query, dout))  # (H, L, D)
    k, v = (x.transpose(0, 1).repeat_interleave(groups, dim=0).contiguous() for x in (key, value))
    wide_q, wide_do = q.to(wide) * scale, do.to(wide)
    wide_k, wide_v = (x.to(wide).transpose(1, 2) for x in (k, v))  # (H, D, M)
    dk, dv = torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
    heads, rows, _ = q.shape
    count = max(BLOCK // max(heads * k.shape[1], 1), LEAST)
    for first in range(0, rows, count):
        block = slice(first, min(first + count, rows))
        seen = slice(0, block.stop if causal else k.shape[1])
        p = torch.bmm(wide_q[:, block], wide_k[:, :, seen])  # (H, rows of the block, keys)
        if causal:
            p += _mask(p.shape[1], p.shape[2], wide)
        p = p.softmax(-1)
        dv[:, seen] += torch.bmm(p.to(low).transpose(1, 2), do[:, block])
        ds = torch.bmm(wide_do[:, block], wide_v[:, :, seen])
        ds.sub_((p * ds).sum(-1, keepdim=True)).mul_(p)
        ds = ds.mul_(scale).to(low)
        dk[:, seen] += torch.bmm(ds.transpose(1, 2), q[:, block])
        dquery[block] = torch.bmm(ds, k[:, seen]).transpose(0, 1)
    for total, target in ((dk, dkey), (dv, dvalue)):
        target.copy_(total.unflatten(0, (-1, groups)).sum(1).transpose(0, 1))


@functools.lru_cache(maxsize=16)
def _mask(rows: int, keys: int, dtype: torch.dtype) -> Tensor:
    """(rows, keys): 0 where the last rows of `keys` see a key, -infinity elsewhere."""
    return torch.full((rows, keys), float("-inf"), dtype=dtype).triu_(keys - rows + 1)
