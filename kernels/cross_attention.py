"""Cross-attention of the visual abstractor (mPLUG-Owl, arXiv 2304.14178, section 3.1).

Queries attend over the projections of [normed queries; normed image features]: keys and values come in two
parts, one from the queries, one from the picture, so that a kernel need not build the concatenation. The
first release of the model has one learned key and value more, the same for all pictures, behind them.
N pictures, Q queries, P image rows, H heads, D head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
    parts = [query_key_value, image_key_value]
    if extra_key_value is not None:
        parts.append(extra_key_value.expand(len(query), 1, -1, -1, -1))
    key, value = torch.cat(parts, dim=1).unbind(2)
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).transpose(1, 2)
