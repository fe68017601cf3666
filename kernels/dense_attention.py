"""Unmasked attention of every row to every row of the same picture: the vision tower's self-attention.

N pictures, L rows, H heads, D head width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def dense_attention_reference(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """query (N, L, H, D), key and value (N, S, H, D) -> (N, L, H, D)."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
