"""Attention over whole sequences without a cache, by Triton: packed and causal, or dense and unmasked.

Packed: tensors (T, heads, D), and starts (B + 1) tells on the device where sequences begin. Dense: tensors
(N, L, heads, D) and no starts. Both are one kernel: a program's place is its first token or its picture,
and the outermost stride is the step from place to place. See flash.py for the method.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from owl_fast.kernels.flash import (
    LOG2_E,
    attend,
    block_of,
    key_gradient_kernel,
    load_rows,
    padded,
    query_gradient,
    sequence,
    softmax_scale,
    store_rows,
    tile_settings,
)
from owl_fast.kernels.kept import kept
from owl_fast.kernels.launch import capability, jit, launch, tl


@jit
def _whole_attention_fwd_kernel(
    q, k, v, out, lse, starts, q_n, q_row, q_head, k_n, k_row, k_head, v_n, v_row, v_head, out_n, lse_n,
    lse_head, queries, keys, scale,
    GROUP: tl.constexpr, CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A tile of queries of one head: grid (tiles, H, N). out has its heads side by side."""
    head = tl.program_id(1).to(tl.int64)
    place, queries, keys = sequence(tl.program_id(2).to(tl.int64), starts, queries, keys)
    block = tl.program_id(0) * BLOCK_M
    if CAUSAL:  # later tiles see more keys: they start first, so that none is left alone at the end
        block = (tl.num_programs(0) - 1) * BLOCK_M - block
    if block >= queries:
        return
    rows = block + tl.arange(0, BLOCK_M)
    query = load_rows(q + place * q_n + head * q_head, q_row, rows, queries, D, BLOCK_D)
    k_head_of = k + place * k_n + head // GROUP * k_head
    v_head_of = v + place * v_n + head // GROUP * v_head
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    mixed = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    end = keys
    full = keys // BLOCK_N * BLOCK_N
    if CAUSAL:
        end = tl.minimum(block + BLOCK_M, keys)
        full = block // BLOCK_N * BLOCK_N
    largest, total, mixed = attend(
        largest, total, mixed, query, k_head_of, v_head_of, k_row, v_row, 0, full, rows, scale,
        None, 0.0, None, False, False, D, BLOCK_D, BLOCK_N,
    )  # fmt: skip
    largest, total, mixed = attend(
        largest, total, mixed, query, k_head_of, v_head_of, k_row, v_row, full, end, rows, scale,
        None, 0.0, None, True, CAUSAL, D, BLOCK_D, BLOCK_N,
    )  # fmt: skip
    out_row = tl.num_programs(1) * D
    store_rows(out + place * out_n + head * D, out_row, rows, queries, mixed / total[:, None], D, BLOCK_D)
    if lse is not None:
        places = lse + place * lse_n + head * lse_head + rows
        tl.store(places, largest + tl.log2(total), mask=rows < queries)


@jit
def _whole_attention_query_gradient_kernel(
    q, k, v, out, given, lse, delta, dq, starts, q_n, q_row, q_head, k_n, k_row, k_head, v_n, v_row, v_head,
    given_n, given_row, given_head, out_n, lse_n, lse_head, queries, keys, softmax_scale, scale,
    GROUP: tl.constexpr, CAUSAL: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dq, laid out as out, and delta for the gradient of keys; grid (tiles, H, N)."""
    head = tl.program_id(1).to(tl.int64)
    place, queries, keys = sequence(tl.program_id(2).to(tl.int64), starts, queries, keys)
    block = tl.program_id(0) * BLOCK_M
    if CAUSAL:
        block = (tl.num_programs(0) - 1) * BLOCK_M - block
    if block >= queries:
        return
    rows = block + tl.arange(0, BLOCK_M)
    out_row = tl.num_programs(1) * D
    of_head = place * lse_n + head * lse_head + rows
    query = load_rows(q + place * q_n + head * q_head, q_row, rows, queries, D, BLOCK_D)
    do = load_rows(given + place * given_n + head * given_head, given_row, rows, queries, D, BLOCK_D)
    attended = load_rows(out + place * out_n + head * D, out_row, rows, queries, D, BLOCK_D)
    mean = tl.sum(attended.to(tl.float32) * do.to(tl.float32), 1)
    tl.store(delta + of_head, mean, mask=rows < queries)
    log_sum = tl.load(lse + of_head, mask=rows < queries, other=float("inf"))
    k_head_of = k + place * k_n + head // GROUP * k_head
    v_head_of = v + place * v_n + head // GROUP * v_head
    gradient = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    end = keys
    full = keys // BLOCK_N * BLOCK_N
    if CAUSAL:
        end = tl.minimum(block + BLOCK_M, keys)
        full = block // BLOCK_N * BLOCK_N
    gradient = query_gradient(
        gradient, query, do, log_sum, mean, k_head_of, v_head_of, k_row, v_row, 0, full, rows, scale,
        None, 0.0, None, False, False, D, BLOCK_D, BLOCK_N,
    )  # fmt: skip
    gradient = query_gradient(
        gradient, query, do, log_sum, mean, k_head_of, v_head_of, k_row, v_row, full, end, rows, scale,
        None, 0.0, None, True, CAUSAL, D, BLOCK_D, BLOCK_N,
    )  # fmt: skip
    store_rows(dq + place * out_n + head * D, out_row, rows, queries, gradient * softmax_scale, D, BLOCK_D)


def launch_spec(width: int, dtype: torch.dtype, capability: int) -> dict[str, dict[str, int]]:
    """Tiles of the three kernels: one choice for all lengths, so a row's bits depend on its sequence alone.

    Not measured yet. They are the largest that leave no register spilled: products read shared memory on 90
    and 100, registers elsewhere. float32 has no tensor cores: a thread holds whole rows of its operands.
    """
    from_shared = capability in (90, 100)
    if dtype == torch.float32 or width > 128:
        tiles = (32, 32, 16, 1), (32, 32, 16, 1) if width <= 32 else (16, 16, 4, 1), (32, 32, 16, 1)
    elif width > 64 and from_shared:
        tiles = (128, 64, 8, 3), (128, 64, 8, 2), (32, 128, 8, 2)
    elif width > 64:
        tiles = (128, 32, 8, 2), (64, 32, 4, 2), (16, 128, 8, 2)
    elif from_shared:
        tiles = (64, 64, 4, 2), (64, 64, 4, 2), (64, 64, 4, 2)
    else:
        tiles = (64, 64, 4, 2), (64, 32, 4, 2), (32, 64, 4, 2)
    kernels = ("forward", "queries", "keys")
    return {kernel: tile_settings(*tile) for kernel, tile in zip(kernels, tiles, strict=True)}


def whole_attention(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor | None, longest: int, causal: bool
) -> Tensor:
    """query (T, H, D) or (N, L, H, D), key and value with K heads -> contiguous, of query's shape.

    starts: (B + 1) int32 for packed tensors. longest: rows of the longest sequence. Nothing is checked here.
    """
    if torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)):
        return _WholeAttention.apply(query, key, value, starts, longest, causal)
    return _forward(query, key, value, starts, longest, causal)[0]


class _WholeAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, starts: Tensor | None, longest: int, causal: bool
    ) -> Tensor:
        def forward() -> tuple[Tensor, Tensor]:
            out, lse = _forward(query, key, value, starts, longest, causal, keeps_lse=True)
            assert lse is not None
            return out, lse

        out, lse = kept("attention", forward)
        ctx.save_for_backward(query, key, value, starts, out, lse)
        ctx.longest, ctx.causal = longest, causal
        return out

    @staticmethod
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, starts, out, lse = ctx.saved_tensors
        given = given if given.stride(-1) == 1 else given.contiguous()
        spec = launch_spec(query.shape[-1], query.dtype, capability(query.device))
        layout = _Layout.of(query, key, starts)
        settings = _settings(query, key, ctx.causal)
        strides = (*_strides(query), *_strides(key), *_strides(value), *_strides(given))
        scale = softmax_scale(query.shape[-1])
        dq, delta = query.new_empty(query.shape), torch.empty_like(lse)
        grid = -(-ctx.longest // spec["queries"]["BLOCK_M"]), query.shape[-2], layout.number
        launch(
            _whole_attention_query_gradient_kernel, grid,
            query, key, value, out, given, lse, delta, dq, starts, *strides, out.stride(0), *layout.lse,
            *layout.counts, scale, scale * LOG2_E, **settings, **spec["queries"],
        )  # fmt: skip
        dk, dv = key.new_empty(key.shape), value.new_empty(value.shape)
        longest = ctx.longest if starts is not None else key.shape[1]
        grid = -(-longest // spec["keys"]["BLOCK_N"]), key.shape[-2], layout.number
        launch(
            key_gradient_kernel, grid,
            query, key, value, given, lse, delta, dk, dv, starts, *strides, *layout.lse, *_strides(dk)[:2],
            *layout.counts, None, None, scale, scale * LOG2_E, None, None, **settings, **spec["keys"],
        )  # fmt: skip
        return dq, dk, dv, None, None, None


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor | None,
    longest: int,
    causal: bool,
    keeps_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    out, layout = query.new_empty(query.shape), _Layout.of(query, key, starts)
    heads, width = query.shape[-2:]
    lse = query.new_empty(heads, layout.lse[1], dtype=torch.float32) if keeps_lse else None
    spec = launch_spec(width, query.dtype, capability(query.device))["forward"]
    strides = (*_strides(query), *_strides(key), *_strides(value), out.stride(0))
    launch(
        _whole_attention_fwd_kernel, (-(-longest // spec["BLOCK_M"]), heads, layout.number),
        query, key, value, out, lse, starts, *strides, *layout.lse, *layout.counts,
        softmax_scale(width) * LOG2_E, **_settings(query, key, causal), **spec,
    )  # fmt: skip
    return out, lse


class _Layout(NamedTuple):
    """number: N or B. lse: its steps from place to place and head to head. counts: queries and keys of every
    picture; the device alone knows those of packed sequences."""

    number: int
    lse: tuple[int, int]
    counts: tuple[int | None, int | None]

    @classmethod
    def of(cls, query: Tensor, key: Tensor, starts: Tensor | None) -> _Layout:
        if starts is not None:
            return cls(len(starts) - 1, (1, padded(len(query))), (None, None))
        rows = padded(query.shape[1])
        return cls(len(query), (rows, len(query) * rows), (query.shape[1], key.shape[1]))


def _settings(query: Tensor, key: Tensor, causal: bool) -> dict[str, Any]:
    width, group = query.shape[-1], query.shape[-2] // key.shape[-2]
    return {"GROUP": group, "CAUSAL": causal, "D": width, "BLOCK_D": block_of(width)}


def _strides(x: Tensor) -> tuple[int, int, int]:
    """From place to place, row to row and head to head."""
    place, *rest = x.stride()[:-1]
    return (place, rest[0], rest[1]) if x.dim() == 4 else (place, place, rest[0])
