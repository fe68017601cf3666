"""The two thin products of low-rank updates: T = scale (dropout(x) A^T) (M, R), and adding T B^T to a tile.

M rows, K inner width, R rank, n adapters; a row has one adapter or none, so that T keeps (M, R) for any n.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from owl_fast.kernels.dropout import Dropout, keep_mask
from owl_fast.kernels.launch import check, jit, launch, power_of_two, tl
from owl_fast.kernels.weights import StackedLora

INSIDE = 32  # largest rank for which T is summed beside the main tile: a quarter of its work at 128 outputs
EXPANDED = 64  # ranks added at a time


class Branch(NamedTuple):
    """What is added to a linear layer's output: T b^T, T given in t (M, R) or made there from a and scale.

    b (n, N, R) with any strides, owner (M,) int32 the adapter of each row, or None.
    """

    b: Tensor
    t: Tensor | None
    a: Tensor | None = None
    scale: Tensor | None = None
    owner: Tensor | None = None


@jit
def narrow_tile(
    a, places, count, place_stride, rank_stride, RANK: tl.constexpr, BLOCK_RANK: tl.constexpr,
    first: tl.constexpr = 0
):  # fmt: skip
    """A's columns, or B's rows, `places` with ranks from `first`: (PLACES, BLOCK_RANK), zero outside."""
    ranks = first + tl.arange(0, BLOCK_RANK)
    offsets = places.to(tl.int64)[:, None] * place_stride + ranks[None, :] * rank_stride
    return tl.load(a + offsets, mask=(places < count)[:, None] & (ranks < RANK)[None, :], other=0.0)


@jit
def expanded(
    y, t, b, owners, rows, outs, M, N, t_stride, b_adapter_stride, b_out_stride, b_rank_stride, adapters,
    RANK: tl.constexpr, BLOCK_RANK: tl.constexpr
):  # fmt: skip
    """y (BLOCK_M, BLOCK_N) + T B^T with T from memory; adapters of no row of the tile cost nothing."""
    if owners is None:
        y = _plus_product(
            y, t, b, rows, rows < M, outs, N, t_stride, b_out_stride, b_rank_stride, RANK, BLOCK_RANK
        )
    else:
        owner = tl.load(owners + rows, mask=rows < M, other=-1)
        for adapter in range(adapters):
            own = owner == adapter
            if tl.max(own.to(tl.int32), 0) > 0:
                its_b = b + tl.cast(adapter, tl.int64) * b_adapter_stride
                y = _plus_product(
                    y, t, its_b, rows, own, outs, N, t_stride, b_out_stride, b_rank_stride, RANK, BLOCK_RANK
                )
    return y


@jit
def _plus_product(
    y, t, b, rows, own, outs, N, t_stride, b_out_stride, b_rank_stride, RANK: tl.constexpr,
    BLOCK_RANK: tl.constexpr
):  # fmt: skip
    for first in tl.static_range(0, RANK, BLOCK_RANK):
        ranks = first + tl.arange(0, BLOCK_RANK)
        places = rows.to(tl.int64)[:, None] * t_stride + ranks[None, :]
        left = tl.load(t + places, mask=own[:, None] & (ranks < RANK)[None, :], other=0.0)
        right = narrow_tile(b, outs, N, b_out_stride, b_rank_stride, RANK, BLOCK_RANK, first)
        y = tl.dot(left, tl.trans(right), y, input_precision="ieee")
    return y


@jit
def _shrink_kernel(
    x, a, scale, owners, t, M, K, x_stride, a_adapter_stride, a_rank_stride, a_inner_stride, seed, threshold,
    dropout_scale, RANK: tl.constexpr, BLOCK_RANK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr
):  # fmt: skip
    """Rows of T for one adapter and BLOCK_RANK of its ranks; only its own rows are written."""
    dtype: tl.constexpr = x.dtype.element_ty
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    adapter = tl.program_id(1).to(tl.int64)
    ranks = tl.program_id(2) * BLOCK_RANK + tl.arange(0, BLOCK_RANK)
    own = rows < M
    if owners is not None:
        own &= tl.load(owners + rows, mask=own, other=-1) == adapter
    if tl.max(own.to(tl.int32), 0) > 0:
        row_places = rows.to(tl.int64)[:, None]
        rank_places = a + adapter * a_adapter_stride + ranks.to(tl.int64)[None, :] * a_rank_stride
        total = tl.zeros((BLOCK_M, BLOCK_RANK), tl.float32)
        for k in range(0, K, BLOCK_K):
            inner = k + tl.arange(0, BLOCK_K)
            within = inner < K
            left = tl.load(
                x + row_places * x_stride + inner[None, :], mask=own[:, None] & within[None, :], other=0.0
            )
            if threshold is not None:
                left = tl.where(keep_mask(seed, threshold, rows, k, BLOCK_K), left, 0.0)
            mask = within[:, None] & (ranks < RANK)[None, :]
            right = tl.load(rank_places + inner.to(tl.int64)[:, None] * a_inner_stride, mask=mask, other=0.0)
            total = tl.dot(left, right, total, input_precision="ieee")
        if threshold is not None:
            total *= dropout_scale
        total *= tl.load(scale + adapter * RANK + ranks, mask=ranks < RANK, other=0.0)[None, :]
        mask = own[:, None] & (ranks < RANK)[None, :]
        tl.store(t + row_places * RANK + ranks[None, :], total.to(dtype), mask=mask)


def padded_rank(rank: int, most: int) -> int:
    """A power of two a tensor core takes."""
    return min(max(16, power_of_two(rank)), most)


def shrink_spec(rank: int, dtype: torch.dtype) -> dict[str, int]:
    """Few rows per program, for x is read once and programs are few; not measured yet."""
    block_k = 64 if dtype == torch.float32 else 128
    block_rank = padded_rank(rank, 64)
    return {"BLOCK_RANK": block_rank, "BLOCK_M": 16, "BLOCK_K": block_k, "num_warps": 4, "num_stages": 4}


def shrink(
    x: Tensor, a: Tensor, scale: Tensor, owners: Tensor | None, dropout: Dropout | None = None
) -> Tensor:
    """x (M, K), a (n, R, K) of any strides, scale (n, R) fp32 -> T (M, R), unwritten where owners is -1."""
    adapters, rank, inner = a.shape
    t = torch.empty(len(x), rank, dtype=x.dtype, device=x.device)
    spec = shrink_spec(rank, x.dtype)
    grid = -(-len(x) // spec["BLOCK_M"]), adapters, -(-rank // spec["BLOCK_RANK"])
    drop = (None, None, None) if dropout is None else (dropout.seed, dropout.threshold, dropout.scale)
    args = (x, a, scale, owners, t, len(x), inner, x.stride(0), *a.stride(), *drop)
    launch(_shrink_kernel, grid, *args, RANK=rank, **spec)
    return t


def branch_of(x: Tensor, lora: StackedLora, dropout: Dropout | None = None, *, exact: bool = False) -> Branch:
    """The update of rows x (M, K); T is left to the main kernel where that is cheap. exact: never, so that
    it is summed alike for one adapter and for several."""
    if not exact and lora.owner is None and dropout is None and lora.a.shape[1] <= INSIDE:
        return Branch(lora.b, None, lora.a, lora.scale)
    return Branch(lora.b, shrink(x, lora.a, lora.scale, lora.owner, dropout), owner=lora.owner)


def check_lora(lora: StackedLora, x: Tensor, outputs: int, rows: int) -> None:
    """Shapes as StackedLora has them, everything contiguous, a and b of x's dtype."""
    adapters, rank = lora.scale.shape
    wanted = [
        (lora.a, (adapters, rank, x.shape[-1]), x.dtype),
        (lora.b, (adapters, outputs, rank), x.dtype),
        (lora.scale, (adapters, rank), torch.float32),
    ]
    if lora.owner is not None:
        wanted.append((lora.owner, (rows,), torch.int32))
    for part, shape, dtype in wanted:
        fits = part.shape == shape and part.dtype == dtype and part.device == x.device
        check(fits and part.is_contiguous(), part, f"a contiguous {dtype} {shape} on {x.device}")
