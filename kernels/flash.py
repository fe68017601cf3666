"""Attention without its matrix of weights (FlashAttention, arXiv 2205.14135, 2307.08691): what kernels share.

With s = q k^T / sqrt(D), p = softmax(s) and o = p v, a tile of queries passes over tiles of keys and keeps,
per row, the largest score so far, the sum of exp2(s - largest) and the mixture of values. The backward pass
starts from lse = log2(sum exp2(s)), with scores in units of ln 2:

    p = exp2(s - lse)      dv = p^T do      ds = p (do v^T - delta), delta = sum over D of o do
    dq = ds k / sqrt(D)    dk = ds^T q / sqrt(D)

Dropout replaces p by z p / (1 - drop) with z drawn for (picture, head, query, key) alone. Programs that own
keys sum the gradients of keys, programs that own queries those of queries: no atomics.

Key tiles are visited in order, in tiles that depend on D and dtype alone. N pictures or sequences, H heads,
K key heads, D head width, R rows of lse: a multiple of 16, so that no length makes another variant.
"""

from __future__ import annotations

import math

from torch import Tensor

from owl_fast.kernels.launch import GPU_DTYPES, check, jit, power_of_two, tl

WIDEST = 256  # head width
LOG2_E = 1 / math.log(2)


@jit
def load_rows(base, row_stride, rows, count, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """(rows, BLOCK_D) with zeros outside; count None: all rows are inside."""
    cols = tl.arange(0, BLOCK_D)
    mask = (cols < D)[None, :]
    if count is not None:
        mask = mask & (rows < count)[:, None]
    return tl.load(base + rows.to(tl.int64)[:, None] * row_stride + cols[None, :], mask=mask, other=0.0)


@jit
def store_rows(base, row_stride, rows, count, values, D: tl.constexpr, BLOCK_D: tl.constexpr):
    cols = tl.arange(0, BLOCK_D)
    mask = (cols < D)[None, :] & (rows < count)[:, None]
    places = base + rows.to(tl.int64)[:, None] * row_stride + cols[None, :]
    tl.store(places, values.to(base.dtype.element_ty), mask=mask)


@jit
def sequence(number, starts, queries, keys):
    """Place, queries and keys of the number-th sequence: as starts has it, or as given without starts."""
    if starts is not None:
        place = tl.load(starts + number).to(tl.int64)
        length = (tl.load(starts + number + 1) - place).to(tl.int32)
        return place, length, length
    else:
        return number, queries, keys


@jit
def attend(
    largest, total, mixed, q, k, v, k_stride, v_stride, begin, end, rows, scale, seed, drop, draws,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Let the queries q (M, BLOCK_D) of these rows see keys [begin, end).

    MASKED: end may fall inside a tile, and with CAUSAL a row sees no key behind itself. draws (M,): if seed
    is given, the number of each row's draw for key 0.
    """
    count = end if MASKED else None
    for first in range(begin, end, BLOCK_N):
        keys = first + tl.arange(0, BLOCK_N)
        scores = tl.dot(q, tl.trans(load_rows(k, k_stride, keys, count, D, BLOCK_D)), input_precision="ieee")
        scores *= scale
        if MASKED:
            seen = (keys < end)[None, :]
            if CAUSAL:
                seen = seen & (keys[None, :] <= rows[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, 1))
        p = tl.exp2(scores - new_largest[:, None])
        shrink = tl.exp2(largest - new_largest)
        total = total * shrink + tl.sum(p, 1)
        if seed is not None:
            p = tl.where(tl.rand(seed, draws[:, None] + keys[None, :]) >= drop, p, 0.0)
        values = load_rows(v, v_stride, keys, count, D, BLOCK_D)
        mixed = tl.dot(p.to(values.dtype), values, mixed * shrink[:, None], input_precision="ieee")
        largest = new_largest
    return largest, total, mixed


@jit
def query_gradient(
    dq, q, given, lse, delta, k, v, k_stride, v_stride, begin, end, rows, scale, seed, drop, draws,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Add what keys [begin, end) give to dq (M, BLOCK_D), not yet scaled; arguments as of attend."""
    count = end if MASKED else None
    for first in range(begin, end, BLOCK_N):
        keys = first + tl.arange(0, BLOCK_N)
        tile = load_rows(k, k_stride, keys, count, D, BLOCK_D)
        scores = tl.dot(q, tl.trans(tile), input_precision="ieee") * scale
        if MASKED:
            seen = (keys < end)[None, :]
            if CAUSAL:
                seen = seen & (keys[None, :] <= rows[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        p = tl.exp2(scores - lse[:, None])
        values = load_rows(v, v_stride, keys, count, D, BLOCK_D)
        dp = tl.dot(given, tl.trans(values), input_precision="ieee")
        if seed is not None:
            kept = tl.rand(seed, draws[:, None] + keys[None, :]) >= drop
            dp = tl.where(kept, dp / (1.0 - drop), 0.0)
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(tile.dtype), tile, dq, input_precision="ieee")
    return dq


@jit
def _add_queries(
    dk, dv, k, v, q, given, lse, delta, q_stride, given_stride, begin, end, queries, keys, scale, seed,
    drop, draws, draws_row,
    CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Add what query rows [begin, end) give to dk and dv (N, BLOCK_D), not yet scaled.

    Rows beyond `queries` are read as zeros with an infinite lse, which makes their weights zero.
    """
    for first in range(begin, end, BLOCK_M):
        rows = first + tl.arange(0, BLOCK_M)
        tile = load_rows(q, q_stride, rows, queries, D, BLOCK_D)
        do = load_rows(given, given_stride, rows, queries, D, BLOCK_D)
        log_sum = tl.load(lse + rows, mask=rows < queries, other=float("inf"))
        mean = tl.load(delta + rows, mask=rows < queries, other=0.0)
        scores = tl.dot(k, tl.trans(tile), input_precision="ieee") * scale  # (N, M)
        if CAUSAL:
            scores = tl.where(keys[:, None] <= rows[None, :], scores, float("-inf"))
        p = tl.exp2(scores - log_sum[None, :])
        dp = tl.dot(v, tl.trans(do), input_precision="ieee")
        mixing = p
        if seed is not None:
            numbers = draws + keys[:, None] + rows.to(tl.int64)[None, :] * draws_row
            kept = tl.rand(seed, numbers) >= drop
            mixing = tl.where(kept, p, 0.0)
            dp = tl.where(kept, dp / (1.0 - drop), 0.0)
        dv = tl.dot(mixing.to(do.dtype), do, dv, input_precision="ieee")
        ds = p * (dp - mean[None, :])
        dk = tl.dot(ds.to(tile.dtype), tile, dk, input_precision="ieee")
    return dk, dv


@jit
def key_gradient_kernel(
    q, k, v, given, lse, delta, dk, dv, starts, q_n, q_row, q_head, k_n, k_row, k_head, v_n, v_row, v_head,
    given_n, given_row, given_head, lse_n, lse_head, dk_n, dk_row, queries, keys, all_keys, first_key,
    softmax_scale, scale, seed, drop,
    GROUP: tl.constexpr, CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dk and dv of a tile of keys: grid (tiles, K, N). For starts and strides see whole_attention.py."""
    head, number = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    place, queries, keys = sequence(number, starts, queries, keys)
    heads = tl.num_programs(1) * GROUP
    block = tl.program_id(0) * BLOCK_N
    if block >= keys:
        return
    mine = block + tl.arange(0, BLOCK_N)
    key = load_rows(k + place * k_n + head * k_head, k_row, mine, keys, D, BLOCK_D)
    value = load_rows(v + place * v_n + head * v_head, v_row, mine, keys, D, BLOCK_D)
    dkey = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dvalue = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for i in range(GROUP):
        h = head * GROUP + i
        q_h, given_h = q + place * q_n + h * q_head, given + place * given_n + h * given_head
        lse_h, delta_h = lse + place * lse_n + h * lse_head, delta + place * lse_n + h * lse_head
        draws = None
        if seed is not None:
            draws = (number * heads + h) * queries * all_keys + first_key
        begin = 0
        if CAUSAL:  # queries on the diagonal; those behind it see every key of the tile
            begin = tl.minimum(tl.cdiv(block + BLOCK_N, BLOCK_M) * BLOCK_M, queries)
            dkey, dvalue = _add_queries(
                dkey, dvalue, key, value, q_h, given_h, lse_h, delta_h, q_row, given_row,
                block // BLOCK_M * BLOCK_M, begin, queries, mine, scale, seed, drop, draws, all_keys,
                True, D, BLOCK_D, BLOCK_M,
            )  # fmt: skip
        dkey, dvalue = _add_queries(
            dkey, dvalue, key, value, q_h, given_h, lse_h, delta_h, q_row, given_row,
            begin, queries, queries, mine, scale, seed, drop, draws, all_keys,
            False, D, BLOCK_D, BLOCK_M,
        )  # fmt: skip
    if seed is not None:
        dvalue = dvalue / (1.0 - drop)
    here = place * dk_n + head * D
    store_rows(dk + here, dk_row, mine, keys, dkey * softmax_scale, D, BLOCK_D)
    store_rows(dv + here, dk_row, mine, keys, dvalue, D, BLOCK_D)


def block_of(width: int) -> int:
    """Columns of a tile for this head width; tl.dot wants 16 at least."""
    return max(16, power_of_two(width))


def tile_settings(queries: int, keys: int, warps: int, stages: int) -> dict[str, int]:
    return {"BLOCK_M": queries, "BLOCK_N": keys, "num_warps": warps, "num_stages": stages}


def softmax_scale(width: int) -> float:
    return 1 / math.sqrt(width)


def padded(rows: int) -> int:
    """Room for lse of so many rows."""
    return -(-rows // 16) * 16


def check_heads(x: Tensor, shape: tuple[int | None, ...], like: Tensor) -> None:
    """ValueError unless x has this shape (None: any), like's dtype and device, and channels side by side."""
    fits = x.dim() == len(shape) and all(b in (a, None) for a, b in zip(x.shape, shape, strict=True))
    fits = fits and x.dtype == like.dtype and x.device == like.device and x.dtype in GPU_DTYPES
    wanted = ", ".join("any" if length is None else str(length) for length in shape)
    kind = (
        str(like.dtype).removeprefix("torch.") if like.dtype in GPU_DTYPES else "float32, bfloat16 or float16"
    )
    check(
        fits and 0 < x.shape[-1] <= WIDEST and x.stride(-1) == 1,
        x,
        f"{kind} ({wanted}) on {like.device}, channels of a head side by side and {WIDEST} at most",
    )
