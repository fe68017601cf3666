"""Causal self-attention over packed sequences: softmax(Q K^T / sqrt(D)) V within each sequence.

T tokens, H query heads, K key heads (H a multiple of K: grouped queries), D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor


def varlen_attention_reference(query: Tensor, key: Tensor, value: Tensor, bounds: Sequence[int]) -> Tensor:
    """query (T, H, D), key and value (T, K, D) -> (T, H, D).

    bounds: host-side sequence boundaries, 0 = bounds[0] <= ... <= bounds[-1] = T. A row sees its own
    sequence up to itself and nothing else.
    """
    lengths = [end - start for start, end in pairwise(bounds)]
    outputs = []
    # split, not slices: the gradient of a slice is a tensor as large as the whole pack, once per sequence.
    for parts in zip(*(torch.split(x, lengths) for x in (query, key, value)), strict=True):
        q, k, v = (part.transpose(0, 1)[None] for part in parts)  # (1, heads, L, D)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        outputs.append(out[0].transpose(0, 1))
    return torch.cat(outputs) if outputs else query
