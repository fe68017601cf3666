"""What the kernels of linear layers share: reading a tile of a weight in any format, and finishing an output.

W (N, K) is a linear layer's; formats are those of kernels/weights.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from owl_fast.kernels.launch import GPU_DTYPES, check, jit, tl
from owl_fast.kernels.weights import Int4Weight, Int8Weight, Weight

ACTIVATIONS = (None, "quick_gelu", "swiglu")
# Streaming multiprocessors of a usual GPU of each compute capability (A100, 3090, 4090, H200, B200, 5090).
PROCESSORS = {80: 108, 86: 82, 89: 128, 90: 132, 100: 148, 120: 170}
LITTLE_SHARED = (
    86,
    89,
    120,
)  # capabilities with 99 KB of shared memory for a block; others have 163 and more


def known_capability(capability: int) -> int:
    """The newest of PROCESSORS that is no newer than this one."""
    return max((known for known in PROCESSORS if known <= capability), default=80)


@jit
def weight_tile(
    weight, scale, rows, first, row_count, column_count, row_stride, scale_stride,
    dtype: tl.constexpr, COLUMNS: tl.constexpr, FORMAT: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """W[rows, first : first + COLUMNS] as `dtype`, first a multiple of COLUMNS; int8 values are not scaled.

    Outside of W: 0, or, where a nibble fills the last byte of a row, something finite.
    """
    lines = rows.to(tl.int64)[:, None]
    inside = (rows < row_count)[:, None]
    columns = first + tl.arange(0, COLUMNS)
    if FORMAT == "dense":
        mask = inside & (columns < column_count)[None, :]
        tile = tl.load(weight + lines * row_stride + columns[None, :], mask=mask, other=0.0)
    elif FORMAT == "int8":
        mask = inside & (columns < column_count)[None, :]
        values = tl.load(weight + lines * row_stride + columns[None, :], mask=mask, other=0)
        tile = _to_float(values.to(tl.uint8, bitcast=True) ^ 128, 128).to(dtype)
    else:
        places = first // 2 + tl.arange(0, COLUMNS // 2)
        mask = inside & (places < (column_count + 1) // 2)[None, :]
        pairs = tl.load(weight + lines * row_stride + places[None, :], mask=mask, other=0x88)
        values = _to_float(tl.interleave(pairs & 15, pairs >> 4), 8)
        if GROUP % COLUMNS == 0:  # one scale per row of the tile
            factor = tl.load(scale + lines * scale_stride + first // GROUP, mask=inside, other=0.0)
        else:
            groups = (columns // GROUP)[None, :]
            mask = inside & (columns < column_count)[None, :]
            factor = tl.load(scale + lines * scale_stride + groups, mask=mask, other=0.0)
        tile = (values * factor.to(tl.float32)).to(dtype)
    return tile


@jit
def _to_float(values, ZERO: tl.constexpr):
    """uint8 - ZERO in fp32: put into the mantissa of 2^23, which is cheaper than a conversion."""
    return (values.to(tl.uint32) | 0x4B000000).to(tl.float32, bitcast=True) - (8388608.0 + ZERO)


@jit
def with_bias(y, bias, columns, count):
    """y (ROWS, COLUMNS) + bias[columns]."""
    if bias is not None:
        y += tl.load(bias + columns, mask=columns < count, other=0.0).to(tl.float32)[None, :]
    return y


@jit
def finished(y, up, residual, offsets, mask, dtype: tl.constexpr, ACTIVATION: tl.constexpr):
    """Activation and residual, rounded as torch's separate operations do; y and, for swiglu, up in fp32."""
    y = y.to(dtype)
    if ACTIVATION == "swiglu":
        gate = y.to(tl.float32)
        y = (_silu(gate).to(dtype).to(tl.float32) * up.to(dtype).to(tl.float32)).to(dtype)
    elif ACTIVATION == "quick_gelu":
        wide = y.to(tl.float32)
        inner = (1.702 * wide).to(dtype).to(tl.float32)
        y = (wide * tl.sigmoid(inner).to(dtype).to(tl.float32)).to(dtype)
    if residual is not None:
        y = (y.to(tl.float32) + tl.load(residual + offsets, mask=mask, other=0.0).to(tl.float32)).to(dtype)
    return y


@jit
def _silu(x):
    return x * tl.sigmoid(x)


def weight_format(weight: Weight) -> tuple[Tensor, Tensor | None, int, dict[str, Any]]:
    """(values, scales, stride of a row of scales, the kernels' settings)."""
    if isinstance(weight, Int8Weight):
        return weight.q, weight.scale, 0, {"FORMAT": "int8", "GROUP": 0}
    if isinstance(weight, Int4Weight):
        return weight.q, weight.scale, weight.scale.stride(0), {"FORMAT": "int4", "GROUP": weight.group}
    return weight, None, 0, {"FORMAT": "dense", "GROUP": 0}


def check_linear(x: Tensor, weight: Weight, bias: Tensor | None) -> None:
    """x (..., K), weight (N, K), bias (N,): of one dtype (quantized weights have their own) and device."""
    check(x.dim() > 0 and x.dtype in GPU_DTYPES, x, "fp32, bf16 or fp16 of one dimension or more")
    outputs, inner = weight.shape
    if isinstance(weight, Tensor):
        _check_part(weight, (outputs, x.shape[-1]), x.dtype, x)
    else:
        check(inner == x.shape[-1], f"a weight of {inner} inputs", f"{x.shape[-1]}, as x has")
        if isinstance(weight, Int8Weight):
            parts = ((weight.q, inner, torch.int8), (weight.scale[:, None], 1, torch.float32))
        else:
            groups = -(-inner // weight.group)
            parts = ((weight.q, -(-inner // 2), torch.uint8), (weight.scale, groups, torch.float16))
        for part, width, dtype in parts:
            _check_part(part, (outputs, width), dtype, x)
    if bias is not None:
        _check_part(bias, (outputs,), x.dtype, x)


def _check_part(part: Tensor, shape: tuple[int, ...], dtype: torch.dtype, x: Tensor) -> None:
    fits = part.shape == shape and part.dtype == dtype and part.device == x.device
    side_by_side = part.stride(-1) == 1 or part.shape[-1] <= 1
    kind = str(dtype).removeprefix("torch.")
    check(fits and side_by_side, part, f"{kind} {shape} on {x.device}, neighbours of a row side by side")
