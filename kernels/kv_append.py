"""Write new keys and values into their slots of the paged cache.

Slot s is block s // block_size, row s % block_size. Every slot is written at most once per call. The caches
are (blocks, block_size, K, D) in a floating dtype, or in int8 with a float32 scale per token and head
(blocks, block_size, K):  x = q * scale,  scale = max |x| / 127,  q = x / scale rounded, ties to even.

N rows, H query heads, K key heads, D head width.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from owl_fast.kernels.attention_cpu import cache_fits, function, heads_fit, put_cache, put_new, task_of
from owl_fast.kernels.launch import GPU_DTYPES, check, jit, launch, tl
from owl_fast.kernels.rotary import check_rotary, launch_spec, rotary_reference, rotated

SMALLEST = 2.0**-126  # scale of a row of zeros: the smallest normal float32


def quantize_heads(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (..., D) -> int8 (..., D) and its scales (...) in float32."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = (wide.abs().amax(-1) / 127.0).clamp(min=SMALLEST).float()
    return (wide / scale[..., None]).round().to(torch.int8), scale


def dequantize_heads(quantized: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """int8 (..., D) with scales (...) -> (..., D)."""
    return (quantized.to(torch.promote_types(dtype, torch.float32)) * scale[..., None]).to(dtype)


def kv_append_reference(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> None:
    """key, value (N, K, D); slot_mapping (N,) int64, every slot >= 0; scales of an int8 cache.

    The caches (blocks, block_size, K, D) are changed in place.
    """
    block, row = slot_mapping // key_cache.shape[1], slot_mapping % key_cache.shape[1]
    for x, cache, scales in ((key, key_cache, key_scale), (value, value_cache, value_scale)):
        if scales is not None:
            x, scale = quantize_heads(x)
            scales[block, row] = scale
        cache[block, row] = x.to(cache.dtype)


def rotary_append_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> Tensor:
    """query (N, H, D), key and value (N, K, D), cos and sin (N, D/2) -> the rotated query.

    The rotated keys and the values are appended as kv_append_reference does.
    """
    turned = rotary_reference(key, cos, sin)
    kv_append_reference(turned, value, key_cache, value_cache, slot_mapping, key_scale, value_scale)
    return rotary_reference(query, cos, sin)


@jit
def as_cached(x, cache, QUANTIZED: tl.constexpr):
    """x (R, D) -> the values the cache keeps, in its dtype, and their scales (R,)."""
    if QUANTIZED:
        wide = x.to(tl.float32)
        scale = tl.maximum(tl.div_rn(tl.max(tl.abs(wide), 1), 127.0), 2.0**-126)
        steps = tl.div_rn(wide, tl.broadcast_to(scale[:, None], wide.shape))
        # 1.5 * 2^23: sums of this size have no fraction, and are rounded to nearest even on the way.
        kept = ((steps + 12582912.0) - 12582912.0).to(tl.int8)
    else:
        scale = tl.full((x.shape[0],), 1.0, tl.float32)
        kept = x.to(cache.dtype.element_ty)
    return kept, scale


@jit
def operand(x, dtype: tl.constexpr, QUANTIZED: tl.constexpr):
    """Part of a cache for tl.dot. int8 goes through fp32: the interpreter has no way to bf16 of its own."""
    return x.to(tl.float32).to(dtype) if QUANTIZED else x.to(dtype)


@jit
def store_cached(kept, scale, cache, scales, at, there, columns, HEAD_DIM: tl.constexpr):
    """Store what as_cached gave. at (R, 1): slot * K + head, where there (R, 1)."""
    tl.store(cache + at * HEAD_DIM + columns, kept, mask=there & (columns < HEAD_DIM))
    if scales is not None:
        tl.store(scales + at, scale[:, None], mask=there)


@jit
def _rotary_append_kernel(
    query, key, value, cos, sin, query_out, key_cache, value_cache, key_scale, value_scale, slots,
    query_row, query_head, key_row, key_head, value_row, value_head,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Some heads of one row per program: first those of the queries, then those of the keys and values."""
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    half: tl.constexpr = HEAD_DIM // 2
    query_tiles: tl.constexpr = (HEADS + BLOCK_H - 1) // BLOCK_H
    columns = tl.arange(0, BLOCK_D)[None, :]
    heads = tl.arange(0, BLOCK_H)[:, None]
    cos += row * half
    sin += row * half
    if tile < query_tiles:
        heads += tile * BLOCK_H
        inside = (heads < HEADS) & (columns < HEAD_DIM)
        x = rotated(query + row * query_row + heads * query_head, cos, sin, columns, inside, 0.0, False, half)
        out = query_out + (row * HEADS + heads) * HEAD_DIM + columns
        tl.store(out, x.to(query_out.dtype.element_ty), mask=inside)
    else:
        slot = tl.load(slots + row)
        if slot >= 0:
            heads += (tile - query_tiles) * BLOCK_H
            there = heads < KV_HEADS
            inside = there & (columns < HEAD_DIM)
            at = slot * KV_HEADS + heads
            k = rotated(key + row * key_row + heads * key_head, cos, sin, columns, inside, 0.0, False, half)
            kept, scale = as_cached(k.to(key.dtype.element_ty), key_cache, key_scale is not None)
            store_cached(kept, scale, key_cache, key_scale, at, there, columns, HEAD_DIM)
            v = tl.load(value + row * value_row + heads * value_head + columns, mask=inside, other=0.0)
            kept, scale = as_cached(v, value_cache, value_scale is not None)
            store_cached(kept, scale, value_cache, value_scale, at, there, columns, HEAD_DIM)


def check_cache(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
) -> None:
    """Caches (blocks, block_size, K, D) for query (N, H, D): block_size a power of two, H a multiple of K."""
    shape = key_cache.shape
    check(len(shape) == 4, key_cache, "a key cache (blocks, block_size, K, D)")
    grouped = query.shape[1] % shape[2] == 0 and shape[3] == query.shape[2]
    check(grouped, key_cache, f"a cache of key heads that share {query.shape[1]} of width {query.shape[2]}")
    check(shape[1] & (shape[1] - 1) == 0, key_cache, "blocks of a power of two tokens")
    dtypes = (torch.int8,) if key_scale is not None else GPU_DTYPES
    for cache in (key_cache, value_cache):
        fits = cache.shape == shape and cache.dtype == key_cache.dtype and cache.device == query.device
        check(fits and cache.is_contiguous(), cache, f"a contiguous cache as the keys' on {query.device}")
        check(cache.dtype in dtypes, cache, "fp32, bf16 or fp16 without scales, int8 with scales")
    for scales in (key_scale, value_scale):
        if scales is None:
            check(key_scale is None and value_scale is None, scales, "scales of both caches, or of none")
        else:
            fits = scales.shape == shape[:3] and scales.dtype == torch.float32 and scales.is_contiguous()
            check(
                fits and scales.device == query.device, scales, f"contiguous fp32 {tuple(shape[:3])} scales"
            )


def check_new(query: Tensor, key: Tensor, value: Tensor, key_cache: Tensor, slot_mapping: Tensor) -> None:
    """key, value (N, K, D) of query's rows and dtype, and a slot for each row."""
    wanted = (len(query), *key_cache.shape[2:])
    for x in (key, value):
        fits = x.shape == wanted and x.dtype == query.dtype and x.device == query.device and x.stride(-1) == 1
        check(fits, x, f"{query.dtype} {wanted} on {query.device}, channels side by side")
    fits = slot_mapping.shape == wanted[:1] and slot_mapping.dtype == torch.int64
    check(fits and slot_mapping.is_contiguous(), slot_mapping, f"contiguous int64 slots {wanted[:1]}")


def rotary_append_triton(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> Tensor:
    """As rotary_append_reference, in one launch, without gradients. query, key and value may be views of
    the rows of a fused projection; of a row whose slot is negative nothing is written to the cache."""
    check_rotary(query, cos, sin, "query")
    check(len(query) == len(cos) == len(sin), cos, f"angles of {len(query)} rows")
    check_cache(query, key_cache, value_cache, key_scale, value_scale)
    check_new(query, key, value, key_cache, slot_mapping)
    rows, heads, head_dim = query.shape
    kv_heads = key.shape[1]
    out = query.new_empty(query.shape)
    spec = launch_spec(heads, head_dim)
    tiles = -(-heads // spec["BLOCK_H"]) + -(-kv_heads // spec["BLOCK_H"])
    launch(
        _rotary_append_kernel, (rows, tiles), query, key, value, cos, sin, out,
        key_cache, value_cache, key_scale, value_scale, slot_mapping,
        *query.stride()[:2], *key.stride()[:2], *value.stride()[:2],
        HEADS=heads, KV_HEADS=kv_heads, HEAD_DIM=head_dim, **spec,
    )  # fmt: skip
    return out


def append_cpu_takes(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> bool:
    """Whether rotary_append_cpu can run it."""
    return (
        cache_fits(query, key_cache, value_cache, (key_scale, value_scale))
        and query.shape[2] % 2 == 0
        and heads_fit(key, query)
        and heads_fit(value, query)
        and key.shape == value.shape == (len(query), *key_cache.shape[2:])
        and cos.dtype == sin.dtype == query.dtype
        and cos.is_contiguous()
        and sin.is_contiguous()
        and slot_mapping.dtype == torch.int64
        and slot_mapping.is_contiguous()
    )


def rotary_append_cpu(
    library: ctypes.CDLL,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    pool: int | None = None,
    path: int = 0,
) -> Tensor:
    """As rotary_append_reference, in libowl_cpu, for what append_cpu_takes. A turned value is rounded once.
    Of a row whose slot is negative nothing is written. pool: native.Pool.handle."""
    task, out = task_of(query, key.shape[1], 0)
    put_new(task, key, value)
    put_cache(task, key_cache, value_cache, key_scale, value_scale)
    task.cos, task.sin, task.angles = cos.data_ptr(), sin.data_ptr(), len(cos)
    task.slots = slot_mapping.data_ptr()
    function(library, "rotary_append")(pool, task, path)
    return out
