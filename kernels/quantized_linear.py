"""Linear layer with int4 or int8 weights and activations rounded to int8, on the CPU.

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
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from owl_fast.kernels.launch import check
from owl_fast.kernels.weights import Int4Weight, Int8Weight, TiledWeight, dequantize

INT8_GROUP = 128
TINY = 2.0**-100
LANES, STEP_BYTES = 16, 64  # rows of a tile, and what is read of it at once: kernels/cpu/quantized_layout.h
_NAMES = {torch.float32: "linear_f32", torch.bfloat16: "linear_bf16"}


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
    calls = _calls(library)
    data = torch.empty(calls.bytes(rows, width, group), dtype=torch.uint8)
    calls.pack(pool, weight.q.data_ptr(), weight.scale.data_ptr(), rows, width, group, data.data_ptr())
    return TiledWeight(data, rows, width, group)


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
    scale = scales.view(torch.float16).view(tiles, -1, LANES).transpose(1, 2).reshape(tiles * LANES, -1)
    pairs = F.pad(q, (0, width % 2), value=8).view(rows, -1, 2)
    return Int4Weight(pairs[..., 0] | pairs[..., 1] << 4, scale[:rows].contiguous(), width, group)


def paths(library: ctypes.CDLL) -> tuple[str, ...]:
    """The instruction sets that library and machine have in common, best first."""
    return _calls(library).paths


def quantized_linear_takes(x: Tensor) -> bool:
    """Whether quantized_linear_cpu can run it."""
    return x.device.type == "cpu" and x.dtype in _NAMES and x.dim() > 0


def quantized_linear_cpu(
    library: ctypes.CDLL, x: Tensor, weight: TiledWeight, pool: int | None = None, path: int = 0
) -> Tensor:
    """x (..., K) -> (..., N), without gradients. pool: native.Pool.handle. path: a place in paths()."""
    rows, width, group = weight.out_features, weight.in_features, weight.group
    fits = quantized_linear_takes(x) and x.shape[-1] == width
    check(fits, x, f"fp32 or bf16 (..., {width}) on the CPU")
    calls = _calls(library)
    check(0 <= path < len(calls.paths), f"path {path}", f"one of {calls.paths}")
    whole = weight.data.numel() == calls.bytes(rows, width, group) and weight.data.is_contiguous()
    check(whole, weight.data, f"the bytes of a tiled ({rows}, {width})")
    x = x.contiguous()
    count = math.prod(x.shape[:-1])
    y = torch.empty((*x.shape[:-1], rows), dtype=x.dtype)
    workspace = torch.empty(calls.workspace(count, width, group), dtype=torch.uint8)
    sizes = count, rows, width, group
    data = weight.data.data_ptr(), x.data_ptr(), y.data_ptr()
    calls.linear[x.dtype](pool, *data, *sizes, workspace.data_ptr(), path)
    return y


class _Calls(NamedTuple):
    """Functions of the library with their types, which cost some microseconds to find."""

    bytes: Callable[..., int]
    pack: Callable[..., None]
    workspace: Callable[..., int]
    linear: dict[torch.dtype, Callable[..., None]]
    paths: tuple[str, ...]


@functools.cache
def _calls(library: ctypes.CDLL) -> _Calls:
    pointer, count = ctypes.c_void_p, ctypes.c_int64

    def typed(name: str, *takes: type, gives: type | None = None) -> Callable[..., Any]:
        function = getattr(library, f"owl_quantized_{name}")
        function.argtypes, function.restype = takes, gives
        return function

    linear = (*(pointer,) * 4, *(count,) * 4, pointer, ctypes.c_int32)
    return _Calls(
        bytes=typed("bytes", count, count, count, gives=count),
        pack=typed("pack", *(pointer,) * 3, *(count,) * 3, pointer),
        workspace=typed("workspace", count, count, count, gives=count),
        linear={dtype: typed(name, *linear) for dtype, name in _NAMES.items()},
        paths=tuple(typed("paths", gives=ctypes.c_char_p)().decode().split(",")),
    )
