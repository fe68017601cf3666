"""Unmasked attention of every row to every row of the same picture: the vision tower's self-attention.

N pictures, L rows, S keys, H heads, D head width.
"""

from __future__ import annotations

import ctypes

import torch.nn.functional as F
from torch import Tensor

from owl_fast.kernels.attention_cpu import heads_fit, query_fits, whole_attention_cpu
from owl_fast.kernels.autocast import as_autocast
from owl_fast.kernels.flash import check_heads
from owl_fast.kernels.launch import check
from owl_fast.kernels.whole_attention import whole_attention


def dense_attention_reference(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """query (N, L, H, D), key and value (N, S, H, D) -> (N, L, H, D)."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def dense_attention_triton(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """As dense_attention_reference, on a GPU, with gradients; any strides, but channels side by side.

    Own kernels in every dtype: a picture of 257 rows fills few of the large tiles of flash-attn and of
    torch's attention, and their gradients are not bit-equal from run to run. Not measured yet.
    """
    query, key, value = as_autocast(query, key, value)
    check_heads(query, (None, None, None, None), query)
    pictures, _, heads, width = query.shape
    check_heads(key, (pictures, None, heads, width), query)
    check(key.shape[1] > 0, key, "one key at least")
    check_heads(value, tuple(key.shape), query)
    return whole_attention(query, key, value, None, query.shape[1], causal=False)


def dense_attention_cpu_takes(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether dense_attention_cpu can run it."""
    pictures, _, heads, width = query.shape
    shaped = key.shape == value.shape == (pictures, key.shape[1], heads, width)
    return shaped and query_fits(query, heads) and heads_fit(key, query) and heads_fit(value, query)


def dense_attention_cpu(
    library: ctypes.CDLL, query: Tensor, key: Tensor, value: Tensor, pool: int | None = None, path: int = 0
) -> Tensor:
    """As dense_attention_reference, in libowl_cpu, without gradients, for what dense_attention_cpu_takes."""
    return whole_attention_cpu(library, query, ((key, value),), pool, path)
