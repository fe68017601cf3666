"""Linear layer with int4 or int8 weights and activations rounded to int8, as linear_cpu.py runs it.

    y[m, n] = sum over groups g of x_scale[m, g] * sum over k in g of x8[m, k] W[n, k]
    x_scale[m, g] = max |x[m, k in g]| / 127      x8 = round(x * (127 / max), ties to even)

Groups are those of an int4 weight; 128 inputs for int8. A group whose largest magnitude is below 2^-100
counts as zeros; one value that is not finite makes the whole row NaN. Sums within a group are whole numbers,
those over groups are taken in order in fp32: the bits of a row depend on nothing but the row and W.

Shapes: x (..., K) fp32 or bf16, W (N, K) -> (..., N) in the dtype of x.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from owl_fast.kernels.launch import check
from owl_fast.kernels.weights import Int4Weight, Int8Weight, TiledWeight, dequantize

INT8_GROUP = 128
TINY = 2.0**-100
LANES, STEP_BYTES = 16, 64  # rows of a tile, and what is read of it at once: kernels/cpu/quantized_layout.h


def quantize_rows_reference(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """x (M, K) -> whole numbers (M, K) and scales (M, K / group, rounded up), both fp32."""
    rows, width = x.shape
    groups = -(-width // group)
    wide = F.pad(x.float(), (0, groups * group - width)).view(rows, groups, group)
    largest = wide.abs().amax(-1, keepdim=True)
    finite, used = wide.isfinite().all(-1, keepdim=True), largest >= TINY
    most = torch.full_like(largest, 127.0)  # a number above a tensor would be multiplied by 1 / tensor
    q = torch.where(finite & used, wide * (most / largest), 0.0).round()
    scale = torch.where(finite, torch.where(used, largest / most, 0.0), math.nan)
    return q.flatten(1)[:, :width], scale.squeeze(-1)


def quantized_linear_reference(x: Tensor, weight: Int8Weight | Int4Weight) -> Tensor:
    """F.linear of the rounded activations and the dequantized weights, in float64, rounded once."""
    group = weight.group if isinstance(weight, Int4Weight) else INT8_GROUP
    q, scale = quantize_rows_reference(x.flatten(0, -2) if x.dim() > 1 else x[None], group)
    rounded = q.double() * scale.double().repeat_interleave(group, dim=1)[:, : q.shape[1]]
    y = F.linear(rounded, dequantize(weight, torch.float64))
    broken = scale.isnan().any(-1, keepdim=True)  # also where a weight of zero would hide it
    return y.masked_fill(broken, math.nan).to(x.dtype).view(*x.shape[:-1], weight.shape[0])


def pack(library: ctypes.CDLL, weight: Int8Weight | Int4Weight, pool: int | None = None) -> TiledWeight:
    """A copy in the order in which libowl_cpu reads it. pool: native.Pool.handle."""
    group = weight.group if isinstance(weight, Int4Weight) else 0
    rows, width = weight.shape
    kinds = (torch.uint8, torch.float16) if group else (torch.int8, torch.float32)
    shapes = ((rows, -(-width // 2)), (rows, -(-width // group))) if group else ((rows, width), (rows,))
    for tensor, kind, shape in zip((weight.q, weight.scale), kinds, shapes, strict=True):
        fits = tensor.dtype == kind and tensor.shape == shape and tensor.device.type == "cpu"
        check(fits and tensor.is_contiguous(), tensor, f"a contiguous {kind} {shape} on the CPU")
    narrow = isinstance(weight, Int4Weight) and fits_a_byte(weight.scale)
    form = form_of(group, narrow)
    data = torch.empty(tiled_bytes(library, form, rows, width, group), dtype=torch.uint8)
    places = weight.q.data_ptr(), weight.scale.data_ptr()
    _pack(library)(pool, form, *places, rows, width, group, data.data_ptr())
    return TiledWeight(data, rows, width, group, narrow)


def fits_a_byte(scale: Tensor) -> bool:
    """Whether fp16 scales are of a sign, 4 bits of exponent and 3 of mantissa: below 2 in magnitude."""
    return not bool((scale.view(torch.int16) & 0x407F).any())


def form_of(group: int, narrow: bool) -> int:
    """libowl_cpu's number for a tiled weight of this kind."""
    return 1 if group == 0 else 3 if narrow else 2


def unpack(weight: TiledWeight) -> Int8Weight | Int4Weight:
    """What was packed, bit by bit."""
    rows, width, group = weight.out_features, weight.in_features, weight.group
    tiles, step = -(-rows // LANES), 8 if group else 4
    size = group or INT8_GROUP
    counts = [min(size, width - first) for first in range(0, width, size)]  # inputs of each group
    steps = [-(-count // step) for count in counts]
    body = weight.data[: tiles * sum(steps) * STEP_BYTES].view(tiles, sum(steps), LANES, 4)
    scales = weight.data[body.numel() :]
    values = torch.cat((body & 15, body >> 4), -1) if group else body ^ 128
    padded = values.transpose(1, 2).reshape(tiles * LANES, -1)[:rows]
    parts = padded.split([n * step for n in steps], dim=1)
    q = torch.cat([part[:, :n] for part, n in zip(parts, counts, strict=True)] or [padded], dim=1)
    if not group:
        return Int8Weight(q.contiguous().view(torch.int8), scales.view(torch.float32)[:rows].clone())
    if weight.narrow:
        wide = scales.to(torch.int16)
        scales = (wide & 0x80) * -256 | (wide & 0x7F) << 7
    scale = scales.view(torch.float16).view(tiles, -1, LANES).transpose(1, 2).reshape(tiles * LANES, -1)
    pairs = F.pad(q, (0, width % 2), value=8).view(rows, -1, 2)
    return Int4Weight(pairs[..., 0] | pairs[..., 1] << 4, scale[:rows].contiguous(), width, group)


@functools.cache
def tiled_bytes(library: ctypes.CDLL, form: int, rows: int, width: int, group: int) -> int:
    """Bytes of a tiled weight (rows, width)."""
    function = library.owl_quantized_bytes
    function.argtypes, function.restype = (ctypes.c_int32, *(ctypes.c_int64,) * 3), ctypes.c_int64
    return int(function(form, rows, width, group))


@functools.cache
def _pack(library: ctypes.CDLL) -> Callable[..., None]:
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    function = library.owl_quantized_pack
    function.argtypes = pointer, ctypes.c_int32, pointer, pointer, *(count,) * 3, pointer
    function.restype = None
    return function
