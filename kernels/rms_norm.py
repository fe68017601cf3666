"""RMSNorm over the last axis:  y = round(x / sqrt(mean(x^2) + eps)) * weight.

Zhang and Sennrich 2019, as LLaMA uses it: the mean and the scaling are computed in fp32, the scaled row is
rounded to the dtype of x, then multiplied by the weight in that dtype.

Shapes: x (..., H), weight (H,) -> (..., H), all of one dtype.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from owl_fast.kernels.cpu_calls import TYPES, call
from owl_fast.kernels.elementwise_cpu import function
from owl_fast.kernels.launch import check, jit, launch, power_of_two, tl
from owl_fast.kernels.rows import as_rows, check_rows

PROGRAMS = 256  # of the backward pass: rows are shared among so many, which is how many sums dW is made of
_NAMES = {torch.float32: "owl_rms_norm_f32", torch.bfloat16: "owl_rms_norm_bf16"}


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Plain torch, any device and floating dtype; float64 stays float64."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return weight * (wide * scale).to(x.dtype)


@jit
def _rms_norm_fwd_kernel(x, weight, y, x_stride, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """One row per program: x (N, H) with any row stride -> y (N, H) contiguous."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < WIDTH
    values = tl.load(x + row * x_stride + cols, mask=inside, other=0.0)
    wide = values.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(wide * wide) / WIDTH + eps)
    scaled = (wide * scale).to(values.dtype).to(tl.float32)
    scaled *= tl.load(weight + cols, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * WIDTH + cols, scaled.to(y.dtype.element_ty), mask=inside)


@jit
def _rms_norm_bwd_kernel(
    x, weight, dy, dx, dw, x_stride, dy_stride, rows, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    """With n = x * scale and g = dy * weight:  dx = scale (g - n mean(g n)),  dw = sum over rows of dy n.

    Each program takes every P-th row and leaves its own sum for the weight in dw (P, H), if that is wanted.
    """
    cols = tl.arange(0, BLOCK)
    inside = cols < WIDTH
    w = tl.load(weight + cols, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        values = tl.load(x + row * x_stride + cols, mask=inside, other=0.0).to(tl.float32)
        given = tl.load(dy + row * dy_stride + cols, mask=inside, other=0.0).to(tl.float32)
        scale = 1.0 / tl.sqrt(tl.sum(values * values) / WIDTH + eps)
        normed = values * scale
        gradient = given * w
        values = scale * (gradient - normed * (tl.sum(gradient * normed) / WIDTH))
        tl.store(dx + row * WIDTH + cols, values.to(dx.dtype.element_ty), mask=inside)
        total += given * normed
    if dw is not None:
        tl.store(dw + tl.program_id(0).to(tl.int64) * WIDTH + cols, total, mask=inside)


def launch_spec(width: int) -> dict[str, int]:
    """A row in registers: 16 values a thread at most."""
    block = power_of_two(width)
    return {"WIDTH": width, "BLOCK": block, "num_warps": min(max(block // 512, 1), 32)}


def rms_norm_triton(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As rms_norm_reference, on a GPU, with gradients for both. x: rows of any stride, fp32, bf16 or fp16."""
    check_rows(x)
    fits = weight.shape == x.shape[-1:] and weight.dtype == x.dtype and weight.device == x.device
    check(fits and weight.is_contiguous(), weight, f"a contiguous {x.dtype} ({x.shape[-1]},) on {x.device}")
    return _RmsNorm.apply(x, weight, eps)


class _RmsNorm(torch.autograd.Function):
    """Keeps x alone; the scale is computed again, which costs no memory traffic."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        rows = as_rows(x)
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        spec = launch_spec(x.shape[-1])
        launch(_rms_norm_fwd_kernel, (len(rows),), rows, weight, y, rows.stride(0), eps, **spec)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        rows, given = as_rows(x), as_rows(dy)
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        programs = min(len(rows), PROGRAMS)
        sums = x.new_empty(programs, x.shape[-1], dtype=torch.float32) if ctx.needs_input_grad[1] else None
        strides = rows.stride(0), given.stride(0)
        args = (rows, weight, given, dx, sums, *strides, len(rows), ctx.eps)
        launch(_rms_norm_bwd_kernel, (programs,), *args, **launch_spec(x.shape[-1]))
        return dx, None if sums is None else sums.sum(0).to(weight.dtype), None


def rms_norm_cpu_takes(x: Tensor, weight: Tensor) -> bool:
    """Whether rms_norm_cpu can run these: contiguous fp32 or bf16 on the CPU, one dtype, matching widths."""
    return (
        x.device.type == "cpu"
        and weight.device.type == "cpu"
        and x.dtype in _NAMES
        and weight.dtype == x.dtype
        and x.dim() > 0
        and weight.shape == x.shape[-1:]
        and x.is_contiguous()
        and weight.is_contiguous()
    )


def rms_norm_cpu(library: ctypes.CDLL, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """libowl_cpu's version, without gradients. x (..., H) and weight (H,) as rms_norm_cpu_takes demands.

    A row's bits depend on that row alone: not on the number of rows, and not on the machine. Against
    rms_norm_reference they may differ by the order in which the squares are summed.
    """
    assert rms_norm_cpu_takes(x, weight), (x.dtype, x.shape, x.stride(), weight.dtype, weight.shape)
    out = torch.empty_like(x)
    width = x.shape[-1]
    rows = math.prod(x.shape[:-1])
    data = x.data_ptr(), weight.data_ptr(), out.data_ptr()
    call(_forward(library, _NAMES[x.dtype]), None, *data, rows, width, eps, keep=(x, weight, out))
    return out


def rms_norm_gradient_cpu(
    library: ctypes.CDLL,
    x: Tensor,
    weight: Tensor,
    dy: Tensor,
    eps: float,
    pool: int | None = None,
    path: int = 0,
) -> Tensor:
    """dx of a frozen weight, for what rms_norm_cpu_takes: fp32 inside, rounded once."""
    dy, dx = dy.to(x.dtype).contiguous(), torch.empty_like(x)
    data = x.data_ptr(), weight.data_ptr(), dy.data_ptr(), dx.data_ptr()
    function(library, "rms_norm_backward")(
        pool, TYPES[x.dtype], *data, math.prod(x.shape[:-1]), x.shape[-1], eps, path
    )
    return dx


@functools.cache
def _forward(library: ctypes.CDLL, name: str) -> Callable[..., None]:
    """owl_rms_norm_*, which take no pool; a recorded call is handed one."""
    found = getattr(library, name)
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    found.argtypes = (pointer, pointer, pointer, count, count, ctypes.c_float)
    found.restype = None
    return lambda pool, *args: found(*args)
