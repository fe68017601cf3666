"""LLaMA-7B's attention over the paged cache: decode steps, a chunk of a prompt, and what writes the cache."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from benchmarks.cases.ops.case import Case, Work
from benchmarks.timing import Run
from owl_fast import ops
from owl_fast.config import OwlConfig
from owl_fast.engine.kv_cache import KVCache

COPIES_BYTES = 200 << 20  # of all layers' caches together; a processor's own are smaller
HEADS, HEAD_DIM, BLOCK, CONTEXT, THETA = 32, 128, 16, 2048, 10000.0
DTYPE = torch.bfloat16


Cache = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # keys, values, and their scales if they are int8


def cache_of(batch: int, context: int, kind: torch.dtype, device: torch.device) -> tuple[Cache, Tensor]:
    """The cache of batch sequences in scattered blocks, and their tables."""
    count = -(-context // BLOCK)
    order = torch.randperm(batch * count, device=device).int()
    tables = torch.zeros(batch, CONTEXT // BLOCK, dtype=torch.int32, device=device)
    tables[:, :count] = order.view(batch, count)
    one_layer = replace(OwlConfig.mplug_owl_7b().llama, num_hidden_layers=1)
    (key, value, *scales) = KVCache(one_layer, batch * count, kind, device).layers[0]
    for x in (key, value):
        x.random_(-127, 128) if kind == torch.int8 else x.normal_()
    for x in scales:
        x.uniform_(0, 1 / 64)
    key_scale, value_scale = scales or (None, None)
    return (key, value, key_scale, value_scale), tables


def nbytes(cache: Cache) -> int:
    return sum(part.nbytes for part in cache if part is not None)


def qkv_of(rows: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Views of a fused projection's rows: (N, H, D) each."""
    qkv = torch.randn(rows, 3, HEADS, HEAD_DIM, dtype=DTYPE, device=device)
    return qkv[:, 0], qkv[:, 1], qkv[:, 2]


def sdpa(batch: int, rows: int, context: int, device: torch.device) -> dict[str, Run]:
    """torch on contiguous keys and values, rotation and append left out."""
    query = torch.randn(batch, HEADS, rows, HEAD_DIM, dtype=DTYPE, device=device)
    key, value = (torch.randn(batch, HEADS, context, HEAD_DIM, dtype=DTYPE, device=device) for _ in range(2))
    mask = None if rows == 1 else causal_lower_right(rows, context)
    return {"torch sdpa": lambda: F.scaled_dot_product_attention(query, key, value, attn_mask=mask)}


def decode(batch: int, context: int, kind: torch.dtype, device: torch.device) -> Work:
    cache, tables = cache_of(batch, context, kind, device)
    query, key, value = qkv_of(batch, device)
    cos, sin = ops.rotary_tables(torch.arange(CONTEXT, device=device), HEAD_DIM, THETA, DTYPE)
    positions = torch.full((batch,), context - 1, device=device)
    slots = tables[:, (context - 1) // BLOCK].long() * BLOCK + (context - 1) % BLOCK
    lengths = torch.full((batch,), context, dtype=torch.int32, device=device)
    workspace = ops.DecodeWorkspace.make(batch, HEADS, CONTEXT, cache[0])
    new = query, key, value, cos, sin, positions
    return Work(
        run=lambda: ops.decode_attention(
            *new, *cache[:2], slots, tables, lengths, *cache[2:], workspace=workspace
        ),
        nbytes=nbytes(cache),
        flops=4 * batch * HEADS * context * HEAD_DIM,
        peers=sdpa(batch, 1, context, device),
    )


def chunk(rows: int, context: int, kind: torch.dtype, device: torch.device) -> Work:
    cache, tables = cache_of(1, context, kind, device)
    query = qkv_of(rows, device)[0]
    bounds = torch.tensor([0, rows], dtype=torch.int32, device=device)
    lengths = torch.tensor([context], dtype=torch.int32, device=device)
    on_host = (0, rows), (context,)
    return Work(
        run=lambda: ops.paged_attention(query, *cache[:2], tables, bounds, lengths, *on_host, *cache[2:]),
        nbytes=nbytes(cache) + 2 * query.numel() * DTYPE.itemsize,
        flops=4 * HEADS * HEAD_DIM * rows * (context - (rows - 1) // 2),
        peers=sdpa(1, rows, context, device),
    )


def append(rows: int, kind: torch.dtype, device: torch.device) -> Work:
    cache, _ = cache_of(1, CONTEXT, kind, device)
    new = qkv_of(rows, device)
    cos, sin = ops.rotary_tables(torch.arange(rows, device=device), HEAD_DIM, THETA, DTYPE)
    slots = torch.randperm(CONTEXT, device=device)[:rows]
    written = 2 * rows * HEADS * (HEAD_DIM * kind.itemsize + (0 if cache[2] is None else 4))
    return Work(
        run=lambda: ops.rotary_append(*new, cos, sin, *cache[:2], slots, *cache[2:]),
        nbytes=4 * new[0].numel() * DTYPE.itemsize + written,
    )


def decode_on_cpu(context: int, kind: torch.dtype, device: torch.device) -> Work:
    """One sequence; each run takes the next of several layers, more than a processor's cache holds.

    plain read: torch's maximum over the same bytes.
    """
    first, tables = cache_of(1, context, kind, device)
    caches = [first, *(cache_of(1, context, kind, device)[0] for _ in range(COPIES_BYTES // nbytes(first)))]
    dtype = torch.float32 if kind == torch.float32 else DTYPE
    query, key, value = (x.to(dtype) for x in qkv_of(1, device))
    cos, sin = ops.rotary_tables(torch.arange(CONTEXT), HEAD_DIM, THETA, dtype)
    slots = tables[:, (context - 1) // BLOCK].long() * BLOCK + (context - 1) % BLOCK
    new = query, key, value, cos, sin, torch.tensor([context - 1])
    lengths = torch.tensor([context], dtype=torch.int32)
    q = query.transpose(0, 1)[None]
    pairs = [torch.randn(2, 1, HEADS, context, HEAD_DIM).to(dtype) for _ in caches]
    ours, read, torchs = itertools.cycle(caches), itertools.cycle(caches), itertools.cycle(pairs)

    def run() -> object:
        keys, values, key_scale, value_scale = next(ours)
        return ops.decode_attention(
            *new, keys, values, slots, tables, lengths, key_scale=key_scale, value_scale=value_scale
        )

    def torch_run() -> object:
        keys, values = next(torchs).unbind()
        return F.scaled_dot_product_attention(q, keys, values)

    return Work(
        run=run,
        nbytes=nbytes(first),
        flops=4 * HEADS * context * HEAD_DIM,
        peers={
            "torch sdpa": torch_run,
            "plain read": lambda: [x.view(torch.int32).amax() for x in next(read)[:2]],
        },
    )


CPU_CASES = (
    *(
        Case("decode_attention of layers", f"B1-L512-H32-D128-{name}", partial(decode_on_cpu, 512, kind))
        for name, kind in (("bf16", DTYPE), ("int8", torch.int8), ("fp32", torch.float32))
    ),
    Case("paged_attention", "N165-L165-H32-D128-bf16", partial(chunk, 165, 165, DTYPE)),
    Case("paged_attention", "N165-L512-H32-D128-bf16 as a chunk", partial(chunk, 165, 512, DTYPE)),
)
CASES = (
    *(
        Case(
            "decode_attention", f"B{batch}-L{context}-H32-D128-{name}", partial(decode, batch, context, kind)
        )
        for name, kind in (("bf16", DTYPE), ("int8", torch.int8))
        for batch in (1, 64)
        for context in (512, 2048)
    ),
    Case("paged_attention", "N165-L512-H32-D128-bf16", partial(chunk, 165, 512, DTYPE)),
    Case("paged_attention", "N165-L512-H32-D128-int8", partial(chunk, 165, 512, torch.int8)),
    Case("rotary_append", "N165-H32-D128-bf16", partial(append, 165, DTYPE)),
    Case("rotary_append", "N165-H32-D128-int8", partial(append, 165, torch.int8)),
)
