"""Rows of a quantized weight written out: the kernel versions of weights.dequantize, equal to it bit by bit.

For operations that hand slices of a weight to a matrix product of the library's. W (N, K), G group.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from owl_fast.kernels.cpu_calls import TYPES
from owl_fast.kernels.elementwise_cpu import function
from owl_fast.kernels.launch import GPU_DTYPES, check, jit, launch, power_of_two, tl
from owl_fast.kernels.quantized_linear import form_of
from owl_fast.kernels.weights import Int4Weight, Int8Weight


@jit
def _dequantize_int8_kernel(
    q, scale, out, q_stride, out_stride, scale_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    """One tile of one row per program: out[n, k] = q[n, k] scale[n]."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < WIDTH
    values = tl.load(q + row * q_stride + cols, mask=inside, other=0, eviction_policy="evict_first")
    values = values.to(tl.float32) * tl.load(scale + row * scale_stride).to(tl.float32)
    tl.store(out + row * out_stride + cols, values.to(out.dtype.element_ty), mask=inside)


@jit
def _dequantize_int4_kernel(
    q, scale, out, q_stride, out_stride, scale_stride,
    WIDTH: tl.constexpr, GROUP: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Parts of a row per program, each inside one group: out[n, k] = (q[n, k] - 8) scale[n, k // G]."""
    row = tl.program_id(0).to(tl.int64)
    part = (tl.program_id(1) * PARTS + tl.arange(0, PARTS))[:, None]
    pair = part * (PART // 2) + tl.arange(0, PART // 2)[None, :]
    cols = part * PART + tl.arange(0, PART)[None, :]
    both = tl.load(q + row * q_stride + pair, mask=2 * pair < WIDTH, other=0, eviction_policy="evict_first")
    values = tl.interleave(both & 15, both >> 4).to(tl.float32) - 8.0
    group_scale = scale + row * scale_stride + part * PART // GROUP
    values *= tl.load(group_scale, mask=part * PART < WIDTH, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + cols, values.to(out.dtype.element_ty), mask=cols < WIDTH)


def launch_spec(width: int, group: int | None) -> dict[str, int]:
    """Tiles of 2048 values and 4 warps: 16 values a thread. Not measured yet."""
    block = min(power_of_two(width), 2048)
    if group is None:
        return {"WIDTH": width, "BLOCK": block, "num_warps": min(max(block // 512, 1), 4)}
    part = group & -group  # the largest power of two that divides it
    return {"WIDTH": width, "GROUP": group, "PART": part, "PARTS": max(block // part, 1), "num_warps": 4}


def check_quantized(weight: Int8Weight | Int4Weight) -> None:
    """What the kernels take: rows side by side in memory, even groups."""
    for part in (weight.q, weight.scale):
        check(part.is_contiguous(), part, "a contiguous tensor")
    if isinstance(weight, Int4Weight):
        check(
            weight.group > 0 and weight.group % 2 == 0,
            f"int4 groups of {weight.group}",
            "an even number above 0",
        )


def dequantize_rows(weight: Int8Weight | Int4Weight, first: int, out: Tensor) -> None:
    """Rows first, first + 1, ... of W into out (n, K); check_quantized has seen the weight."""
    last, width = first + len(out), weight.shape[1]
    fits = out.dim() == 2 and out.dtype in GPU_DTYPES and out.stride(1) == 1 and out.shape[1] == width
    check(fits and last <= weight.shape[0], out, f"at most {weight.shape[0] - first} rows of {width} columns")
    q, scale = weight.q[first:last], weight.scale[first:last]
    strides = q.stride(0), out.stride(0), scale.stride(0)
    if isinstance(weight, Int8Weight):
        spec = launch_spec(width, None)
        grid = len(out), -(-width // spec["BLOCK"])
        launch(_dequantize_int8_kernel, grid, q, scale, out, *strides, **spec)
    else:
        spec = launch_spec(width, weight.group)
        grid = len(out), -(-width // (spec["PART"] * spec["PARTS"]))
        launch(_dequantize_int4_kernel, grid, q, scale, out, *strides, **spec)


def dequantize_cpu_takes(weight: Int8Weight | Int4Weight, dtype: torch.dtype) -> bool:
    """Whether dequantize_cpu can run it: values of a row side by side, rows of any stride."""
    q = weight.q
    return dtype in TYPES and q.is_cpu and q.stride(1) == 1


def dequantize_cpu(
    library: ctypes.CDLL,
    weight: Int8Weight | Int4Weight,
    dtype: torch.dtype,
    pool: int | None = None,
    path: int = 0,
) -> Tensor:
    """W (N, K) in libowl_cpu, for what dequantize_cpu_takes."""
    rows, width = weight.shape
    group = weight.group if isinstance(weight, Int4Weight) else 0
    scale = weight.scale.float().contiguous()
    out = torch.empty(rows, width, dtype=dtype)
    q = weight.q.data_ptr(), weight.q.stride(0)
    places = scale.data_ptr(), out.data_ptr()
    function(library, "dequantize")(
        pool, form_of(group, narrow=False), TYPES[dtype], *q, *places, rows, width, group, path
    )
    return out
