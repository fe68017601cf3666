"""One new token per sequence, in one launch: rotary of query and key, append, attention over the cache.

Sequence b has context_lens[b] keys, the new one last: out = softmax(q k^T / sqrt(D)) v over all of them. Its
keys are cut into splits of a fixed number of tokens (arXiv 2311.01282 calls this split-KV), one program takes
one split or every P-th, and the program of a sequence and key head that arrives last adds the splits up in
their order. How programs are dealt out changes no bit: a row depends on its own keys alone.

B sequences, H query heads, K key heads (H a multiple of K), D head width, S splits.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from owl_fast.kernels.attention_cpu import function, put_cache, put_new, put_tables, task_of
from owl_fast.kernels.cpu_calls import call
from owl_fast.kernels.kv_append import (
    append_cpu_takes,
    as_cached,
    check_cache,
    check_new,
    operand,
    rotary_append_reference,
    store_cached,
)
from owl_fast.kernels.launch import check, jit, launch, power_of_two, tl
from owl_fast.kernels.paged_attention import check_tables, paged_attention_reference, tables_fit
from owl_fast.kernels.rotary import check_rotary, rotated

# Tokens of a split. At D = 128 in bf16 a program of 256 threads loads 32 KB at once and takes 80 registers a
# thread (Triton 3.9), so that three share an SM with 96 KB in flight, where bandwidth times latency is 26 KB
# on a H200; one sequence of 512 tokens and 32 heads already makes 256 programs. Not measured yet.
SPLIT = 64
PROGRAMS = 4096  # enough for even load on 132 SMs; more would only start to exit. Not measured yet.
COMBINED = 32  # splits added up at once: all of 2048 tokens


@dataclass(frozen=True)
class DecodeWorkspace:
    """What a launch leaves for its last programs, for up to B sequences of S splits. One serves every layer
    and every step on a stream; arrivals are 0 between launches."""

    values: Tensor  # (B, H, S, D) fp32: sums of exp(score - peak) * value
    peaks: Tensor  # (B, H, S) fp32: largest score, times log2(e)
    weights: Tensor  # (B, H, S) fp32: sums of exp(score - peak)
    arrivals: Tensor  # (B, K) int32: programs done

    @classmethod
    def make(cls, batch: int, heads: int, context: int, key_cache: Tensor) -> DecodeWorkspace:
        """context: the longest of any sequence, in tokens. key_cache: of any layer."""
        kv_heads, head_dim = key_cache.shape[2:]
        slots = (batch, heads, -(-context // SPLIT))
        values = key_cache.new_empty((*slots, head_dim), dtype=torch.float32)
        peaks, weights = (key_cache.new_empty(slots, dtype=torch.float32) for _ in range(2))
        return cls(values, peaks, weights, key_cache.new_zeros((batch, kv_heads), dtype=torch.int32))


def decode_attention_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> Tensor:
    """query (B, H, D), key and value (B, K, D); cos, sin (positions, D/2); positions (B,); no padding."""
    scales = key_scale, value_scale
    angles = cos[positions], sin[positions]
    turned = rotary_append_reference(
        query, key, value, *angles, key_cache, value_cache, slot_mapping, *scales
    )
    bounds, lengths = range(len(query) + 1), context_lens.tolist()
    return paged_attention_reference(turned, key_cache, value_cache, block_tables, bounds, lengths, *scales)


@jit
def _decode_attention_kernel(
    query, key, value, cos, sin, positions, key_cache, value_cache, key_scale, value_scale,
    slots, tables, lengths, values, peaks, weights, arrivals, out,
    query_row, query_head, key_row, key_head, value_row, value_head,
    table_row, table_width, length_step, angle_rows, room, scale,
    GROUP: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    SPLIT: tl.constexpr, COMBINED: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Key head, sequence, and first of every P-th split. ROWS: the GROUP of query heads, padded for tl.dot.

    Key heads are neighbours in the grid because their channels are neighbours in the cache.
    """
    head, row, first = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    columns = tl.arange(0, BLOCK_D)[None, :]
    group = tl.arange(0, ROWS)[:, None]
    inside = (group < GROUP) & (columns < HEAD_DIM)
    heads = row * (KV_HEADS * GROUP) + head * GROUP + group  # (ROWS, 1), of all sequences
    length = tl.minimum(tl.load(lengths + row * length_step), table_width * BLOCK_SIZE)
    splits = (length + SPLIT - 1) // SPLIT
    if first >= tl.maximum(splits, 1):
        return
    if length == 0:  # padding of a captured batch
        tl.store(out + heads * HEAD_DIM + columns, tl.zeros((ROWS, BLOCK_D), out.dtype.element_ty), inside)
        return

    position, slot = tl.load(positions + row), tl.load(slots + row)
    tables += row * table_row
    tokens = first * SPLIT + tl.arange(0, SPLIT)
    block = tl.load(tables + tokens // BLOCK_SIZE, mask=tokens < length - 1, other=0)

    # The new token, as the cache will give it back. A position beyond the angles gives NaN, which is seen.
    half: tl.constexpr = HEAD_DIM // 2
    known = columns < tl.where(position < angle_rows, HEAD_DIM, 0)
    cos += position * half
    sin += position * half
    q_at = query + row * query_row + (head * GROUP + group) * query_head
    q = rotated(q_at, cos, sin, columns, inside & known, float("nan"), False, half)
    q = tl.where(inside, q, 0.0).to(query.dtype.element_ty)
    one = tl.zeros((1, 1), tl.int32)
    k_at = key + row * key_row + (head + one) * key_head
    new_k = rotated(k_at, cos, sin, columns, known, float("nan"), False, half)
    new_k = tl.where(columns < HEAD_DIM, new_k, 0.0).to(key.dtype.element_ty)
    new_v = tl.load(value + row * value_row + head * value_head + columns, mask=columns < HEAD_DIM, other=0.0)
    kept_k, new_k_scale = as_cached(new_k, key_cache, key_scale is not None)
    kept_v, new_v_scale = as_cached(new_v, value_cache, value_scale is not None)
    if (slot >= 0) & (first == 0):  # one writer; no program reads the slot
        at = slot * KV_HEADS + head + one
        store_cached(kept_k, new_k_scale, key_cache, key_scale, at, one == 0, columns, HEAD_DIM)
        store_cached(kept_v, new_v_scale, value_cache, value_scale, at, one == 0, columns, HEAD_DIM)
    new_v = kept_v.to(tl.float32) * new_v_scale[:, None]
    new_k = kept_k.to(tl.float32) * new_k_scale[:, None]
    new_score = tl.sum(q.to(tl.float32) * new_k, 1) * scale  # (ROWS,)

    for split in range(first, splits, tl.num_programs(2)):
        cached = tokens < length - 1
        at = (block.to(tl.int64) * BLOCK_SIZE + tokens % BLOCK_SIZE) * KV_HEADS + head
        there = cached[:, None] & (columns < HEAD_DIM)
        v = tl.load(value_cache + at[:, None] * HEAD_DIM + columns, mask=there, other=0.0)
        k = tl.load(key_cache + at[:, None] * HEAD_DIM + columns, mask=there, other=0.0)
        tokens += tl.num_programs(2) * SPLIT
        block = tl.load(tables + tokens // BLOCK_SIZE, mask=tokens < length - 1, other=0)  # of the next
        # No load sinks below; with the values first, most of the split is on its way before anything waits.
        tl.debug_barrier()
        if GROUP == 1:  # one row is no work for tensor cores
            scores = tl.sum(q.to(tl.float32) * k.to(tl.float32), 1)[None, :]
        else:
            k = operand(k, q.dtype, key_scale is not None)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        scores *= scale
        if key_scale is not None:
            scores *= tl.load(key_scale + at, mask=cached, other=0.0)[None, :]
        scores = tl.where(cached[None, :], scores, float("-inf"))
        own = tl.where(split == splits - 1, new_score, float("-inf"))
        peak = tl.maximum(tl.max(scores, 1), own)
        chances, own = tl.exp2(scores - peak[:, None]), tl.exp2(own - peak)
        weight = tl.sum(chances, 1) + own
        if value_scale is not None:
            chances *= tl.load(value_scale + at, mask=cached, other=0.0)[None, :]
        if GROUP == 1:
            mixed = tl.sum(tl.trans(chances) * v.to(tl.float32), 0)[None, :]
        else:
            v = operand(v, q.dtype, value_scale is not None)
            mixed = tl.dot(chances.to(q.dtype), v, input_precision="ieee")
        mixed += own[:, None] * new_v
        if splits == 1:
            mixed = mixed / weight[:, None]
            tl.store(out + heads * HEAD_DIM + columns, mixed.to(out.dtype.element_ty), mask=inside)
        else:
            left = heads * room + split
            tl.store(values + left * HEAD_DIM + columns, mixed, mask=inside)
            tl.store(peaks + left, peak[:, None], mask=group < GROUP)
            tl.store(weights + left, weight[:, None], mask=group < GROUP)

    if splits > 1:
        _combine_last(
            values, peaks, weights, arrivals, out, row, head, room, splits, columns,
            GROUP, KV_HEADS, HEAD_DIM, COMBINED,
        )  # fmt: skip


@jit
def _combine_last(
    values, peaks, weights, arrivals, out, row, head, room, splits, columns,
    GROUP: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, COMBINED: tl.constexpr,
):  # fmt: skip
    """The program that arrives last of those of a key head adds up the splits of its GROUP of query heads.

    By the PTX memory model: the barrier orders all threads' stores before the one thread that counts, and its
    release at GPU scope is cumulative. The last program's acquire sees them all; its other threads get the
    count from that one through a barrier (on sm_90: BAR, MEMBAR.GPU, ATOMG, CCTL.IVALL, BAR). No program
    waits for another, so none has to be resident with another.
    """
    tl.debug_barrier()
    arrival = arrivals + row * KV_HEADS + head
    before = tl.atomic_add(arrival, 1, sem="acq_rel", scope="gpu")
    if before == tl.minimum(splits, tl.num_programs(2)) - 1:
        tl.store(arrival, 0)  # for the next launch: everyone has counted
        for member in range(GROUP):
            this = row * (KV_HEADS * GROUP) + head * GROUP + member
            mixed = _combine(values, peaks, weights, this * room, splits, columns, HEAD_DIM, COMBINED)
            place = out + this * HEAD_DIM + columns
            tl.store(place, mixed.to(out.dtype.element_ty), mask=columns < HEAD_DIM)


@jit
def _combine(values, peaks, weights, start, splits, columns, HEAD_DIM: tl.constexpr, COMBINED: tl.constexpr):
    """The splits of one head -> (1, D) in fp32, added in their order. Read past the SM's own cache (.cg)."""
    peak = tl.full((1,), float("-inf"), tl.float32)
    weight = tl.zeros((1,), tl.float32)
    mixed = tl.zeros((1, columns.shape[1]), tl.float32)
    for begin in range(0, splits, COMBINED):
        split = begin + tl.arange(0, COMBINED)
        there = split < splits
        inside = there[:, None] & (columns < HEAD_DIM)
        at = start + split
        tops = tl.load(peaks + at, mask=there, other=float("-inf"), cache_modifier=".cg")
        parts = tl.load(weights + at, mask=there, other=0.0, cache_modifier=".cg")
        sums = tl.load(
            values + at[:, None] * HEAD_DIM + columns, mask=inside, other=0.0, cache_modifier=".cg"
        )
        top = tl.maximum(peak, tl.max(tops, 0))
        factor, old = tl.exp2(tops - top), tl.exp2(peak - top)
        weight = weight * old + tl.sum(factor * parts, 0)
        mixed = mixed * old[:, None] + tl.sum(factor[:, None] * sums, 0)[None, :]
        peak = top
    return mixed / weight[:, None]


def launch_spec(group: int, head_dim: int) -> dict[str, int]:
    """32 channels of the keys' split for each thread, and as many of the values' (not measured yet)."""
    block_d = max(power_of_two(head_dim), 16)
    rows = 1 if group == 1 else max(power_of_two(group), 16)
    warps = min(max(SPLIT * block_d // 1024, 4), 8)
    settings = {"SPLIT": SPLIT, "COMBINED": COMBINED, "ROWS": rows, "BLOCK_D": block_d}
    return {**settings, "num_warps": warps, "num_stages": 1}


def decode_attention_triton(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    workspace: DecodeWorkspace | None = None,
) -> Tensor:
    """As decode_attention_reference, in one launch: query (B, H, D), key and value (B, K, D) of any row and
    head stride, cos and sin (positions, D/2), block_tables (B, max_blocks) int32, context_lens (B,) int32
    with the new token counted -> (B, H, D).

    The grid depends on shapes alone. A sequence of context 0 is padding: zeros out, nothing appended.
    Without a workspace one is made, which is another launch.
    """
    check_rotary(query, cos, sin, "query")
    check_cache(query, key_cache, value_cache, key_scale, value_scale)
    check_new(query, key, value, key_cache, slot_mapping)
    check_tables(block_tables, context_lens, len(query), query.device)
    fits = positions.shape == slot_mapping.shape and positions.dtype == torch.int64
    fits &= positions.is_contiguous()
    check(fits and positions.device == query.device, positions, f"int64 positions ({len(query)},)")
    (batch, heads, head_dim), kv_heads, block_size = query.shape, key.shape[1], key_cache.shape[1]
    context = block_tables.shape[1] * block_size
    if workspace is None:
        workspace = DecodeWorkspace.make(batch, heads, context, key_cache)
    spec = launch_spec(heads // kv_heads, head_dim)
    splits = -(-context // SPLIT)
    have = workspace.values.shape
    fits = have[0] >= batch and have[1::2] == (heads, head_dim) and have[2] >= splits
    fits &= workspace.arrivals.shape[1] == kv_heads and workspace.values.device == query.device
    check(
        fits, workspace.values, f"a workspace of ({batch}, {heads}, {splits}, {head_dim}) on {query.device}"
    )
    out = query.new_empty(query.shape)
    grid = (kv_heads, batch, min(splits, -(-PROGRAMS // max(batch * kv_heads, 1))))
    launch(
        _decode_attention_kernel, grid, query, key, value, cos, sin, positions,
        key_cache, value_cache, key_scale, value_scale, slot_mapping, block_tables, context_lens,
        workspace.values, workspace.peaks, workspace.weights, workspace.arrivals, out,
        *query.stride()[:2], *key.stride()[:2], *value.stride()[:2],
        block_tables.stride(0), block_tables.shape[1], context_lens.stride(0),
        min(len(cos), len(sin)), have[2], math.log2(math.e) / math.sqrt(head_dim),
        GROUP=heads // kv_heads, KV_HEADS=kv_heads, HEAD_DIM=head_dim, BLOCK_SIZE=block_size,
        **spec,
    )  # fmt: skip
    return out


def decode_attention_cpu_takes(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> bool:
    """Whether decode_attention_cpu can run it."""
    cache = key_cache, value_cache, slot_mapping, key_scale, value_scale
    return (
        append_cpu_takes(query, key, value, cos, sin, *cache)
        and tables_fit(block_tables, context_lens)
        and positions.dtype == torch.int64
        and positions.is_contiguous()
    )


def decode_attention_cpu(
    library: ctypes.CDLL,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    pool: int | None = None,
    path: int = 0,
) -> Tensor:
    """As decode_attention_reference, in one call of libowl_cpu, for what decode_attention_cpu_takes.

    The bits of rotary_append_cpu and paged_attention_cpu. A sequence of context 0 is padding: zeros out,
    nothing appended. A position without an angle gives NaN.
    """
    task, out = task_of(query, key.shape[1], len(query))
    put_new(task, key, value)
    put_cache(task, key_cache, value_cache, key_scale, value_scale)
    put_tables(task, block_tables, context_lens)
    task.cos, task.sin, task.angles = cos.data_ptr(), sin.data_ptr(), len(cos)
    task.positions, task.slots = positions.data_ptr(), slot_mapping.data_ptr()
    given = query, key, value, cos, sin, positions, key_cache, value_cache, key_scale, value_scale
    kept = given, slot_mapping, block_tables, context_lens, out
    call(function(library, "decode_attention"), pool, task, path, keep=kept)
    return out
