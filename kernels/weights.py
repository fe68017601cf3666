"""Quantized weights in their canonical form, the same bytes on every device; W (N, K) is a linear layer's.

int8, one scale per output row:        W[n, k] = q[n, k] scale[n]
int4, one scale per G inputs of a row: W[n, k] = (q[n, k] - 8) scale[n, k // G]
Two int4 values share a byte, the even k in its low half; the last group of a row may be short.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

AT_ONCE = 1 << 18  # weights taken apart at a time: their float32 forms stay in the cache


class Int8Weight(NamedTuple):
    """q (N, K) int8, scale (N,) fp32."""

    q: Tensor
    scale: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.q.shape[0], self.q.shape[1]


class Int4Weight(NamedTuple):
    """q (N, ceil(K / 2)) uint8, scale (N, ceil(K / group)) fp16, K = in_features."""

    q: Tensor
    scale: Tensor
    in_features: int
    group: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.q.shape[0], self.in_features


class TiledWeight(NamedTuple):
    """An Int8Weight (group 0) or Int4Weight in the layout of libowl_cpu, scales included: see
    quantized_linear.py, which packs and unpacks. data (bytes,) uint8; narrow: a scale takes one byte."""

    data: Tensor
    out_features: int
    in_features: int
    group: int
    narrow: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features


class StackedLora(NamedTuple):
    """Adapters of one layer side by side: y[m] += ((x[m] A[i]^T) * scale[i]) B[i]^T with i = owner[m].

    a (n, R, K), b (n, N, R), scale (n, R) fp32, owner (M,) int32 with -1 for no adapter, or None: 0 for all
    rows. Smaller ranks and updates of some output rows are filled up with zeros (in b, and in scale).
    """

    a: Tensor
    b: Tensor
    scale: Tensor
    owner: Tensor | None = None


Weight = Tensor | Int8Weight | Int4Weight


def dequantize(weight: Weight, dtype: torch.dtype) -> Tensor:
    """(N, K) in `dtype`; the products are taken in float32 (float64 where that is asked for).

    Some rows at a time: nothing of the size of the weight comes and goes beside the result.
    """
    if isinstance(weight, Tensor):
        return weight.to(dtype)
    rows, width = weight.shape
    out = weight.scale.new_empty(rows, width, dtype=dtype)
    count = max(1, AT_ONCE // max(width, 1))
    for start in range(0, rows, count):
        part = slice(start, start + count)
        out[part] = _dequantized(weight._replace(q=weight.q[part], scale=weight.scale[part]), dtype)
    return out


def _dequantized(weight: Int8Weight | Int4Weight, dtype: torch.dtype) -> Tensor:
    wide = torch.promote_types(dtype, torch.float32)
    if isinstance(weight, Int8Weight):
        return weight.q.to(wide) * weight.scale.to(wide)[:, None]
    halves = torch.stack((weight.q & 15, weight.q >> 4), dim=-1).flatten(1)[:, : weight.in_features]
    scale = weight.scale.to(wide).repeat_interleave(weight.group, dim=1)[:, : weight.in_features]
    return (halves.to(wide) - 8) * scale
