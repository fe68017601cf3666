"""QuickGELU, the vision tower's activation: y = z * sigmoid(1.702 z), z = x + bias if there is one.

Shapes: x (..., F), bias (F,) -> (..., F). The kernels compute in float32 and round once.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from torch import Tensor

from owl_fast.kernels.cpu_calls import TYPES
from owl_fast.kernels.elementwise_cpu import address, function, rows_fit
from owl_fast.kernels.launch import jit, launch, power_of_two, tl
from owl_fast.kernels.rows import as_rows, check_rows, check_vector

PROGRAMS = 128  # that share the rows where the bias wants a gradient: as many sums; not measured yet


def quick_gelu_reference(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """x of any shape -> same shape."""
    z = x if bias is None else x + bias
    return z * torch.sigmoid(1.702 * z)


@jit
def _quick_gelu_fwd_kernel(x, bias, y, x_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """One tile of one row per program: x (N, F) of any row stride -> y (N, F) contiguous."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < WIDTH
    z = tl.load(x + row * x_stride + cols, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        z += tl.load(bias + cols, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * WIDTH + cols, (z * tl.sigmoid(1.702 * z)).to(y.dtype.element_ty), mask=inside)


@jit
def _quick_gelu_bwd_kernel(
    x, bias, dy, dx, db, x_stride, dy_stride, rows, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):
    """With s = sigmoid(1.702 z):  dx = dy s (1 + 1.702 z (1 - s)),  db = sum over rows of dx.

    Program (p, c) takes tile c of every P-th row and leaves its own sum in db (P, F), if that is wanted.
    """
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < WIDTH
    shift = tl.zeros((BLOCK,), tl.float32)
    if bias is not None:
        shift = tl.load(bias + cols, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0)):
        z = tl.load(x + row * x_stride + cols, mask=inside, other=0.0).to(tl.float32) + shift
        given = tl.load(dy + row * dy_stride + cols, mask=inside, other=0.0).to(tl.float32)
        share = tl.sigmoid(1.702 * z)
        gradient = given * share * (1.0 + 1.702 * z * (1.0 - share))
        tl.store(dx + row * WIDTH + cols, gradient.to(dx.dtype.element_ty), mask=inside)
        total += gradient
    if db is not None:
        tl.store(db + tl.program_id(0).to(tl.int64) * WIDTH + cols, total, mask=inside)


def launch_spec(width: int) -> dict[str, int]:
    """Tiles of 2048: 16 values a thread, two 128-bit loads of bf16. Not measured yet."""
    block = min(power_of_two(width), 2048)
    return {"WIDTH": width, "BLOCK": block, "num_warps": min(max(block // 512, 1), 4)}


def quick_gelu_triton(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """As quick_gelu_reference, on a GPU, with gradients for both; x: rows of any stride."""
    check_rows(x)
    if bias is not None:
        check_vector(bias, x.shape[-1], x.device)
    return _QuickGelu.apply(x, bias)


class _QuickGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, bias)
        rows = as_rows(x)
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        spec = launch_spec(x.shape[-1])
        grid = len(rows), -(-x.shape[-1] // spec["BLOCK"])
        launch(_quick_gelu_fwd_kernel, grid, rows, bias, y, rows.stride(0), **spec)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None]:
        x, bias = ctx.saved_tensors
        rows, given = as_rows(x), as_rows(dy)
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        spec = launch_spec(x.shape[-1])
        summed = ctx.needs_input_grad[1]
        programs = min(len(rows), PROGRAMS) if summed else len(rows)
        db = x.new_empty(programs, x.shape[-1], dtype=torch.float32) if summed else None
        grid = programs, -(-x.shape[-1] // spec["BLOCK"])
        args = (rows, bias, given, dx, db, rows.stride(0), given.stride(0), len(rows))
        launch(_quick_gelu_bwd_kernel, grid, *args, **spec)
        return dx, None if db is None else db.sum(0).to(bias.dtype)


def quick_gelu_cpu_takes(x: Tensor, bias: Tensor | None = None) -> bool:
    """Whether quick_gelu_cpu can run it."""
    return rows_fit(x, bias)


def quick_gelu_cpu(
    library: ctypes.CDLL, x: Tensor, bias: Tensor | None = None, pool: int | None = None, path: int = 0
) -> Tensor:
    """As quick_gelu_reference, in libowl_cpu, without gradients, for what quick_gelu_cpu_takes;
    rounded once."""
    x = x.contiguous()
    out, width = torch.empty_like(x), x.shape[-1]
    data = x.data_ptr(), address(bias), out.data_ptr()
    function(library, "quick_gelu")(pool, TYPES[x.dtype], *data, math.prod(x.shape[:-1]), width, path)
    return out
