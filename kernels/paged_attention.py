"""Attention of new rows against the paged cache, which already holds their own keys and values.

Sequence b has lengths[b] keys in the blocks block_tables[b]; its new rows are the last of them and row i of
n sees the first lengths[b] - n + i + 1 keys: a whole prompt, a chunk behind cached keys and a single decode
step are the same call. T tokens, H query heads, K key heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def paged_attention_reference(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    bounds: Sequence[int],
    lengths: Sequence[int],
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
        # index_select copies only this sequence's blocks; the cache may be kept in a narrower dtype.
        k, v = (
            cache.index_select(0, blocks).flatten(0, 1)[:length].transpose(0, 1)[None].to(query.dtype)
            for cache in (key_cache, value_cache)
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
