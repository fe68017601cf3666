"""Attention of new rows against the paged cache, which already holds their own keys and values.

Sequence b has lengths[b] keys in the blocks block_tables[b]; its new rows are the last of them and row i of
n sees the first lengths[b] - n + i + 1 keys: a whole prompt, a chunk behind cached keys and a single decode
step are the same call. T tokens, H query heads, K key heads, D head width. An int8 cache has float32 scales
(blocks, block_size, K) per token and head (kv_append.py).
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from owl_fast.kernels.attention_cpu import cache_fits, function, put_cache, put_tables, task_of
from owl_fast.kernels.kv_append import check_cache, dequantize_heads, operand
from owl_fast.kernels.launch import GPU_DTYPES, capability, check, jit, launch, power_of_two, tl


def paged_attention_reference(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    bounds: Sequence[int],
    lengths: Sequence[int],
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> Tensor:
    """query (T, H, D), caches (blocks, block_size, K, D), block_tables (B, max_blocks) int -> (T, H, D).

    bounds (B + 1) and lengths (B) are host-side: the query rows and the number of keys of each sequence.
    """
    block_size = key_cache.shape[1]
    outputs = []
    for row, length in enumerate(lengths):
        start, end = bounds[row], bounds[row + 1]
        blocks = block_tables[row, : -(-length // block_size)]
        q = query[start:end].transpose(0, 1)[None]  # (1, H, n, D)
        k, v = (
            _gather(cache, scales, blocks, query.dtype)[:length].transpose(0, 1)[None]
            for cache, scales in ((key_cache, key_scale), (value_cache, value_scale))
        )  # (1, K, length, D)
        mask, whole = None, 1 < end - start == length
        if 1 < end - start < length:
            # Imports torch's compiler, a second or two that few need: prompts longer than a step.
            from torch.nn.attention.bias import causal_lower_right

            mask = causal_lower_right(end - start, length)
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=whole, enable_gqa=q.shape[1] != k.shape[1]
        )
        outputs.append(out[0].transpose(0, 1))
    return torch.cat(outputs) if outputs else query


def _gather(cache: Tensor, scales: Tensor | None, blocks: Tensor, dtype: torch.dtype) -> Tensor:
    """One sequence's blocks alone -> (tokens, K, D); the cache may be kept in a narrower dtype."""
    own = cache.index_select(0, blocks).flatten(0, 1)
    if scales is None:
        return own.to(dtype)
    return dequantize_heads(own, scales.index_select(0, blocks).flatten(0, 1), dtype)


@jit
def _paged_attention_kernel(
    query, key_cache, value_cache, key_scale, value_scale, tables, bounds, lengths, out,
    query_row, query_head, table_row, table_width, length_step, scale,
    GROUP: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A tile of one sequence's rows under one key head: a row of the tile is a token and one of the GROUP of
    query heads. Online softmax (arXiv 2205.14135) over the keys that the last token sees."""
    tile, head, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    begin = tl.load(bounds + sequence).to(tl.int64)
    rows = (tl.load(bounds + sequence + 1) - begin).to(tl.int32)
    if tile * BLOCK_M >= rows * GROUP:
        return
    columns = tl.arange(0, BLOCK_D)[None, :]
    member = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    token, heads = member // GROUP, head * GROUP + member % GROUP
    inside = (token < rows)[:, None] & (columns < HEAD_DIM)
    places = (begin + token)[:, None]
    q = tl.load(query + places * query_row + heads[:, None] * query_head + columns, mask=inside, other=0.0)
    length = tl.minimum(tl.load(lengths + sequence * length_step), table_width * BLOCK_SIZE)
    visible = length - rows + token + 1
    end = tl.minimum(length, length - rows + (tile * BLOCK_M + BLOCK_M - 1) // GROUP + 1)

    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    weight = tl.zeros((BLOCK_M,), tl.float32)
    mixed = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for start in range(0, end, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        cached = keys < end
        block = tl.load(tables + sequence * table_row + keys // BLOCK_SIZE, mask=cached, other=0).to(tl.int64)
        at = (block * BLOCK_SIZE + keys % BLOCK_SIZE) * KV_HEADS + head
        there = cached[:, None] & (columns < HEAD_DIM)
        k = tl.load(key_cache + at[:, None] * HEAD_DIM + columns, mask=there, other=0.0)
        k = operand(k, q.dtype, key_scale is not None)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        if key_scale is not None:
            scores *= tl.load(key_scale + at, mask=cached, other=0.0)[None, :]
        scores = tl.where(keys[None, :] < visible[:, None], scores, float("-inf"))
        top = tl.maximum(peak, tl.max(scores, 1))  # never -inf: every row sees the first key
        chances, old = tl.exp2(scores - top[:, None]), tl.exp2(peak - top)
        weight = weight * old + tl.sum(chances, 1)
        if value_scale is not None:
            chances *= tl.load(value_scale + at, mask=cached, other=0.0)[None, :]
        v = tl.load(value_cache + at[:, None] * HEAD_DIM + columns, mask=there, other=0.0)
        v = operand(v, q.dtype, value_scale is not None)
        mixed = tl.dot(chances.to(q.dtype), v, mixed * old[:, None], input_precision="ieee")
        peak = top
    mixed = mixed / tl.where(weight > 0.0, weight, 1.0)[:, None]  # no key at all: padding, zeros
    place = out + (places * (KV_HEADS * GROUP) + heads[:, None]) * HEAD_DIM + columns
    tl.store(place, mixed.to(out.dtype.element_ty), mask=inside)


EXACT_ROWS = 64  # the largest tile, which chunks want; a single row waits for its keys, not for products


def launch_spec(rows: int, head_dim: int, dtype: torch.dtype, capability: int) -> dict[str, int]:
    """rows: of the longest sequence, times the query heads of a key head. Not measured yet.

    64 rows are what one warpgroup of an H100 multiplies at once, and let a chunk of 165 tokens and 32 heads
    fill 96 programs. fp32 products run on the plain cores: small tiles keep them out of local memory.
    """
    block_d = max(power_of_two(head_dim), 16)
    if dtype == torch.float32:
        return {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_D": block_d, "num_warps": 4, "num_stages": 1}
    block_m = min(max(power_of_two(rows), 16), 64)
    block_n = 64 if capability in (90, 100) else 32  # the others keep products in registers, and 64 spill
    return {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_D": block_d, "num_warps": 4, "num_stages": 3}


def check_tables(block_tables: Tensor, context_lens: Tensor, batch: int, device: torch.device) -> None:
    fits = block_tables.dim() == 2 and len(block_tables) == batch and block_tables.stride(1) == 1
    fits &= block_tables.dtype == torch.int32 and block_tables.device == device
    check(fits, block_tables, f"int32 block tables ({batch}, max_blocks) on {device}, columns side by side")
    fits = context_lens.shape == (batch,) and context_lens.dtype == torch.int32
    check(
        fits and context_lens.device == device, context_lens, f"int32 context lengths ({batch},) on {device}"
    )


def paged_attention_triton(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    cu_seqlens: Tensor,
    context_lens: Tensor,
    max_query_len: int,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    *,
    exact: bool = False,
) -> Tensor:
    """As paged_attention_reference, on a GPU, without gradients: query (T, H, D) of any row and head stride,
    cu_seqlens (B + 1,) int32, context_lens (B,) int32, max_query_len: the most rows of any sequence.
    exact: one size of tiles, so that a row's bits do not depend on how many rows there are.

    Rows past cu_seqlens[-1] stay unwritten; rows of a sequence of context 0 (padding) are zeros.
    """
    check(query.dim() == 3 and query.dtype in GPU_DTYPES, query, "fp32, bf16 or fp16 (T, H, D)")
    check(query.stride(-1) == 1, query, "channels side by side")
    check_cache(query, key_cache, value_cache, key_scale, value_scale)
    batch = len(context_lens)
    check_tables(block_tables, context_lens, batch, query.device)
    fits = cu_seqlens.shape == (batch + 1,) and cu_seqlens.dtype == torch.int32 and cu_seqlens.is_contiguous()
    check(fits and cu_seqlens.device == query.device, cu_seqlens, f"int32 bounds ({batch + 1},)")
    check(max_query_len >= 0, max_query_len, "a number of rows")
    (_, heads, head_dim), block_size, kv_heads = query.shape, *key_cache.shape[1:3]
    group = heads // kv_heads
    tile_rows = EXACT_ROWS if exact else max(max_query_len * group, 1)
    spec = launch_spec(tile_rows, head_dim, query.dtype, capability(query.device))
    out = query.new_empty(query.shape)
    launch(
        _paged_attention_kernel, (-(-max_query_len * group // spec["BLOCK_M"]), kv_heads, batch),
        query, key_cache, value_cache, key_scale, value_scale, block_tables, cu_seqlens, context_lens, out,
        *query.stride()[:2], block_tables.stride(0), block_tables.shape[1], context_lens.stride(0),
        math.log2(math.e) / math.sqrt(head_dim),
        GROUP=group, KV_HEADS=kv_heads, HEAD_DIM=head_dim, BLOCK_SIZE=block_size, **spec,
    )  # fmt: skip
    return out


def paged_attention_cpu_takes(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    cu_seqlens: Tensor,
    context_lens: Tensor,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> bool:
    """Whether paged_attention_cpu can run it."""
    return (
        cache_fits(query, key_cache, value_cache, (key_scale, value_scale))
        and tables_fit(block_tables, context_lens)
        and cu_seqlens.dtype == torch.int32
        and cu_seqlens.is_contiguous()
    )


def tables_fit(block_tables: Tensor, context_lens: Tensor) -> bool:
    """int32 (B, max_blocks), blocks of a sequence side by side, and int32 (B,)."""
    int32 = block_tables.dtype == context_lens.dtype == torch.int32
    return int32 and block_tables.dim() == 2 and block_tables.stride(1) == 1


def paged_attention_cpu(
    library: ctypes.CDLL,
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    cu_seqlens: Tensor,
    context_lens: Tensor,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    pool: int | None = None,
    path: int = 0,
) -> Tensor:
    """As paged_attention_reference, in libowl_cpu, for what paged_attention_cpu_takes: bounds and lengths as
    tensors. pool: native.Pool.handle. path: a place in attention_cpu.paths()."""
    task, out = task_of(query, key_cache.shape[2], len(context_lens))
    put_cache(task, key_cache, value_cache, key_scale, value_scale)
    put_tables(task, block_tables, context_lens)
    task.bounds = cu_seqlens.data_ptr()
    function(library, "paged_attention")(pool, task, path)
    return out
