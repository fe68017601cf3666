"""Cross-attention of the visual abstractor (mPLUG-Owl, arXiv 2304.14178, section 3.1).

Queries attend over the projections of [normed queries; normed image features]: keys and values come in two
parts, one from the queries, one from the picture, so that a kernel need not build the concatenation. The
first release of the model has one learned key and value more, the same for all pictures, behind them.
N pictures, Q queries, P image rows, H heads, D head width. See flash.py for the method.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from owl_fast.kernels.attention_cpu import heads_fit, query_fits, whole_attention_cpu
from owl_fast.kernels.autocast import as_autocast
from owl_fast.kernels.dropout import draw_seed
from owl_fast.kernels.flash import (
    LOG2_E,
    attend,
    block_of,
    check_heads,
    key_gradient_kernel,
    load_rows,
    padded,
    query_gradient,
    softmax_scale,
    store_rows,
    tile_settings,
)
from owl_fast.kernels.launch import capability, check, jit, launch, tl


def cross_attention_reference(
    query: Tensor,
    query_key_value: Tensor,
    image_key_value: Tensor,
    dropout: float = 0.0,
    extra_key_value: Tensor | None = None,
) -> Tensor:
    """query (N, Q, H, D), query_key_value (N, Q, 2, H, D), image_key_value (N, P, 2, H, D) -> (N, Q, H, D).

    dropout: probability of dropping an attention weight (training only). extra_key_value (2, H, D): one more
    key and value, the last of every picture.
    """
    parts = _key_value_parts(query_key_value, image_key_value, extra_key_value)
    key, value = torch.cat(parts, dim=1).unbind(2)
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2)


def _key_value_parts(query_key_value: Tensor, image_key_value: Tensor, extra: Tensor | None) -> list[Tensor]:
    """In the order of the keys, each (N, keys, 2, H, D)."""
    parts = [query_key_value, image_key_value]
    return parts if extra is None else [*parts, extra.expand(len(query_key_value), 1, -1, -1, -1)]


@jit
def _cross_attention_fwd_kernel(
    q, query_kv, image_kv, extra, out, lse, q_n, q_row, q_head, query_n, query_row, query_two, query_head,
    image_n, image_row, image_two, image_head, extra_two, extra_head, lse_n, lse_head, queries, image_rows,
    all_keys, scale, seed, drop,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A tile of queries of one head of one picture: grid (tiles, H, N). out (N, Q, H, D) is contiguous."""
    head, n = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    heads = tl.num_programs(1)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    draws = ((n * heads + head) * queries + rows) * all_keys
    query = load_rows(q + n * q_n + head * q_head, q_row, rows, queries, D, BLOCK_D)
    largest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    mixed = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    k = query_kv + n * query_n + head * query_head
    largest, total, mixed = attend(
        largest, total, mixed, query, k, k + query_two, query_row, query_row, 0, queries, rows, scale,
        seed, drop, draws, True, False, D, BLOCK_D, BLOCK_N,
    )  # fmt: skip
    k = image_kv + n * image_n + head * image_head
    largest, total, mixed = attend(
        largest, total, mixed, query, k, k + image_two, image_row, image_row, 0, image_rows, rows, scale,
        seed, drop, draws + queries, True, False, D, BLOCK_D, BLOCK_N,
    )  # fmt: skip
    if extra is not None:
        k = extra + head * extra_head
        largest, total, mixed = attend(
            largest, total, mixed, query, k, k + extra_two, 0, 0, 0, 1, rows, scale,
            seed, drop, draws + queries + image_rows, True, False, D, BLOCK_D, BLOCK_N,
        )  # fmt: skip
    if seed is not None:
        mixed = mixed / (1.0 - drop)
    out += (n * queries * heads + head) * D
    store_rows(out, heads * D, rows, queries, mixed / total[:, None], D, BLOCK_D)
    if lse is not None:
        tl.store(lse + n * lse_n + head * lse_head + rows, largest + tl.log2(total), mask=rows < queries)


@jit
def _cross_attention_query_gradient_kernel(
    q, query_kv, image_kv, extra, out, given, lse, delta, dq, q_n, q_row, q_head, query_n, query_row,
    query_two, query_head, image_n, image_row, image_two, image_head, extra_two, extra_head, given_n,
    given_row, given_head, lse_n, lse_head, queries, image_rows, all_keys, softmax_scale, scale, seed, drop,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """dq, laid out as out, and delta for the gradients of keys; grid (tiles, H, N)."""
    head, n = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    heads = tl.num_programs(1)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    draws = ((n * heads + head) * queries + rows) * all_keys
    place = (n * queries * heads + head) * D
    of_head = n * lse_n + head * lse_head + rows
    query = load_rows(q + n * q_n + head * q_head, q_row, rows, queries, D, BLOCK_D)
    do = load_rows(given + n * given_n + head * given_head, given_row, rows, queries, D, BLOCK_D)
    attended = load_rows(out + place, heads * D, rows, queries, D, BLOCK_D)
    mean = tl.sum(attended.to(tl.float32) * do.to(tl.float32), 1)
    tl.store(delta + of_head, mean, mask=rows < queries)
    log_sum = tl.load(lse + of_head, mask=rows < queries, other=float("inf"))
    gradient = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    k = query_kv + n * query_n + head * query_head
    gradient = query_gradient(
        gradient, query, do, log_sum, mean, k, k + query_two, query_row, query_row, 0, queries, rows, scale,
        seed, drop, draws, True, False, D, BLOCK_D, BLOCK_N,
    )  # fmt: skip
    k = image_kv + n * image_n + head * image_head
    gradient = query_gradient(
        gradient, query, do, log_sum, mean, k, k + image_two, image_row, image_row, 0, image_rows, rows,
        scale, seed, drop, draws + queries, True, False, D, BLOCK_D, BLOCK_N,
    )  # fmt: skip
    if extra is not None:
        k = extra + head * extra_head
        gradient = query_gradient(
            gradient, query, do, log_sum, mean, k, k + extra_two, 0, 0, 0, 1, rows, scale,
            seed, drop, draws + queries + image_rows, True, False, D, BLOCK_D, BLOCK_N,
        )  # fmt: skip
    store_rows(dq + place, heads * D, rows, queries, gradient * softmax_scale, D, BLOCK_D)


def launch_spec(width: int, dtype: torch.dtype, capability: int) -> dict[str, dict[str, int]]:
    """Tiles of the three kernels; not measured yet. 32 queries a tile, as a picture has 64 of them: 16 heads
    then make 32 programs and not 16."""
    if dtype == torch.float32 or width > 128:
        tiles = (32, 32, 16, 1), (32, 32, 16, 1) if width <= 32 else (16, 16, 4, 1), (32, 32, 16, 1)
    elif width > 64:
        tiles = (32, 32, 4, 2), (32, 32, 4, 2), (16, 64, 4, 2)
    else:  # with dropout, 64 keys a tile spill registers on 120
        tiles = (32, 32 if capability == 120 else 64, 2, 2), (32, 32, 2, 2), (32, 64, 4, 2)
    kernels = ("forward", "queries", "keys")
    return {kernel: tile_settings(*tile) for kernel, tile in zip(kernels, tiles, strict=True)}


def cross_attention_triton(
    query: Tensor,
    query_key_value: Tensor,
    image_key_value: Tensor,
    dropout: float = 0.0,
    extra_key_value: Tensor | None = None,
) -> Tensor:
    """As cross_attention_reference, on a GPU, with gradients; any strides, but channels side by side.

    Which weights are dropped is a function of a seed, drawn from torch's CPU generator, and of the weight's
    place alone.
    """
    inputs = as_autocast(query, query_key_value, image_key_value, extra_key_value)
    query, query_key_value, image_key_value, extra_key_value = inputs
    check_heads(query, (None, None, None, None), query)
    pictures, queries, heads, width = query.shape
    check_heads(query_key_value, (pictures, queries, 2, heads, width), query)
    check_heads(image_key_value, (pictures, None, 2, heads, width), query)
    check(0 <= dropout < 1, f"dropout {dropout}", "a probability below 1")
    if extra_key_value is not None:
        check_heads(extra_key_value, (2, heads, width), query)
    seed = draw_seed() if dropout else None
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        return _CrossAttention.apply(*inputs, dropout, seed)
    return _forward(query, query_key_value, image_key_value, extra_key_value, dropout, seed)[0]


class _CrossAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        query_kv: Tensor,
        image_kv: Tensor,
        extra: Tensor | None,
        dropout: float,
        seed: int | None,
    ) -> Tensor:
        out, lse = _forward(query, query_kv, image_kv, extra, dropout, seed, keeps_lse=True)
        ctx.save_for_backward(query, query_kv, image_kv, extra, out, lse)
        ctx.dropout, ctx.seed = dropout, seed
        return out

    @staticmethod
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        query, query_kv, image_kv, extra, out, lse = ctx.saved_tensors
        given = given if given.stride(-1) == 1 else given.contiguous()
        pictures, queries, heads, width = query.shape
        spec = launch_spec(width, query.dtype, capability(query.device))
        scales = softmax_scale(width), softmax_scale(width) * LOG2_E
        counts, steps = _counts(query_kv, image_kv, extra), _lse_strides(query)
        dq, delta = query.new_empty(query.shape), torch.empty_like(lse)
        launch(
            _cross_attention_query_gradient_kernel,
            (-(-queries // spec["queries"]["BLOCK_M"]), heads, pictures),
            query, query_kv, image_kv, extra, out, given, lse, delta, dq,
            *_strides(query, query_kv, image_kv, extra), *given.stride()[:3], *steps, *counts, *scales,
            ctx.seed, ctx.dropout, D=width, BLOCK_D=block_of(width), **spec["queries"],
        )  # fmt: skip

        def of_part(part: Tensor, first_key: int, dtype: torch.dtype) -> Tensor:
            """Gradient (N, keys, 2, H, D) of a part of the keys and values."""
            gradient = part.new_empty(part.shape, dtype=dtype)
            (k, v), (dk, dv) = part.unbind(2), gradient.unbind(2)
            kv_strides = k.stride()[:3] * 2
            launch(
                key_gradient_kernel, (-(-k.shape[1] // spec["keys"]["BLOCK_N"]), heads, pictures),
                query, k, v, given, lse, delta, dk, dv, None, *query.stride()[:3], *kv_strides,
                *given.stride()[:3], *steps, *dk.stride()[:2], queries, k.shape[1], counts[2], first_key,
                *scales, ctx.seed, ctx.dropout,
                GROUP=1, CAUSAL=False, D=width, BLOCK_D=block_of(width), **spec["keys"],
            )  # fmt: skip
            return gradient

        dextra = None
        if extra is not None and ctx.needs_input_grad[3]:
            everywhere = extra.expand(pictures, 1, -1, -1, -1)
            dextra = of_part(everywhere, sum(counts[:2]), torch.float32).sum((0, 1)).to(extra.dtype)
        first = of_part(query_kv, 0, query.dtype)
        return dq, first, of_part(image_kv, queries, query.dtype), dextra, None, None


def _forward(
    query: Tensor,
    query_kv: Tensor,
    image_kv: Tensor,
    extra: Tensor | None,
    dropout: float,
    seed: int | None,
    keeps_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    pictures, queries, heads, width = query.shape
    out, steps = query.new_empty(query.shape), _lse_strides(query)
    lse = query.new_empty(pictures * steps[0], dtype=torch.float32) if keeps_lse else None
    spec = launch_spec(width, query.dtype, capability(query.device))["forward"]
    launch(
        _cross_attention_fwd_kernel, (-(-queries // spec["BLOCK_M"]), heads, pictures),
        query, query_kv, image_kv, extra, out, lse, *_strides(query, query_kv, image_kv, extra), *steps,
        *_counts(query_kv, image_kv, extra), softmax_scale(width) * LOG2_E, seed, dropout,
        D=width, BLOCK_D=block_of(width), **spec,
    )  # fmt: skip
    return out, lse


def _strides(query: Tensor, query_kv: Tensor, image_kv: Tensor, extra: Tensor | None) -> tuple[int, ...]:
    of_extra = (0, 0) if extra is None else extra.stride()[:2]
    return (*query.stride()[:3], *query_kv.stride()[:4], *image_kv.stride()[:4], *of_extra)


def _lse_strides(query: Tensor) -> tuple[int, int]:
    """From picture to picture and head to head."""
    rows = padded(query.shape[1])
    return query.shape[2] * rows, rows


def _counts(query_kv: Tensor, image_kv: Tensor, extra: Tensor | None) -> tuple[int, int, int]:
    """Queries, image rows, and all keys."""
    queries, rows = query_kv.shape[1], image_kv.shape[1]
    return queries, rows, queries + rows + (extra is not None)


def cross_attention_cpu_takes(
    query: Tensor, query_key_value: Tensor, image_key_value: Tensor, extra_key_value: Tensor | None = None
) -> bool:
    """Whether cross_attention_cpu can run it."""
    pictures, _, heads, width = query.shape
    parts = _key_value_parts(query_key_value, image_key_value, extra_key_value)
    return query_fits(query, heads) and all(
        heads_fit(part, query) and part.shape == (pictures, part.shape[1], 2, heads, width) for part in parts
    )


def cross_attention_cpu(
    library: ctypes.CDLL,
    query: Tensor,
    query_key_value: Tensor,
    image_key_value: Tensor,
    extra_key_value: Tensor | None = None,
    pool: int | None = None,
    path: int = 0,
) -> Tensor:
    """As cross_attention_reference without dropout, in libowl_cpu, without gradients and without joining the
    parts, for what cross_attention_cpu_takes."""
    parts = _key_value_parts(query_key_value, image_key_value, extra_key_value)
    return whole_attention_cpu(library, query, [part.unbind(2) for part in parts], pool, path)
