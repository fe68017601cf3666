"""Layer norm over the last axis: y = (x - mean) / sqrt(var + eps) * weight + bias.

Computed in float32 and cast back to x's dtype, as the original vision tower and abstractor do (their
norms run in float32 whatever the model's dtype). Without weight and bias: the normed rows alone.

A residual connection in front belongs to the linear layer that makes the update: it holds the sum in
registers, where a norm that adds would read both terms from memory again.

Shapes: x (..., H), weight and bias (H,), each of any of the three dtypes -> (..., H) in x's dtype.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from owl_fast.kernels.cpu_calls import TYPES
from owl_fast.kernels.elementwise_cpu import address, function, rows_fit
from owl_fast.kernels.launch import jit, launch, power_of_two, tl
from owl_fast.kernels.rows import as_rows, check_rows, check_vector

PROGRAMS = 256  # of the backward pass: as many partial sums for weight and bias; not measured yet


def layer_norm_reference(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """x (..., D), weight (D,), bias (D,) -> (..., D) in x's dtype."""
    wide = torch.promote_types(x.dtype, torch.float32)
    scale, shift = (None if v is None else v.to(wide) for v in (weight, bias))
    return F.layer_norm(x.to(wide), x.shape[-1:], scale, shift, eps).to(x.dtype)


@jit
def _layer_norm_fwd_kernel(x, weight, bias, y, x_stride, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """One row per program: x (N, H) of any row stride -> y (N, H) contiguous."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < WIDTH
    values = tl.load(x + row * x_stride + cols, mask=inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, values - tl.sum(values) / WIDTH, 0.0)
    normed = centred * (1.0 / tl.sqrt(tl.sum(centred * centred) / WIDTH + eps))
    if weight is not None:
        normed *= tl.load(weight + cols, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        normed += tl.load(bias + cols, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * WIDTH + cols, normed.to(y.dtype.element_ty), mask=inside)


@jit
def _layer_norm_bwd_kernel(
    x, weight, dy, dx, dw, db, x_stride, dy_stride, rows, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """With n the normed row and g = dy * weight:  dx = (g - mean(g) - n mean(g n)) / std.

    Each program takes every P-th tile of ROWS rows and leaves its own sums for weight and bias in dw and db
    (P, H), where they are wanted:  dw = sum over rows of dy n,  db = sum over rows of dy.
    """
    cols = tl.arange(0, BLOCK)[None, :]
    inside = cols < WIDTH
    scale = tl.full((1, BLOCK), 1.0, tl.float32)
    if weight is not None:
        scale = tl.load(weight + cols, mask=inside, other=0.0).to(tl.float32)
    dw_total = tl.zeros((ROWS, BLOCK), tl.float32)
    db_total = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(tl.program_id(0) * ROWS, rows, tl.num_programs(0) * ROWS):
        row = (first + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        here = (row < rows) & inside
        values = tl.load(x + row * x_stride + cols, mask=here, other=0.0).to(tl.float32)
        given = tl.load(dy + row * dy_stride + cols, mask=here, other=0.0).to(tl.float32)
        centred = tl.where(inside, values - (tl.sum(values, 1) / WIDTH)[:, None], 0.0)
        inverse = (1.0 / tl.sqrt(tl.sum(centred * centred, 1) / WIDTH + eps))[:, None]
        normed = centred * inverse
        if dx is not None:
            gradient = given * scale
            along = (tl.sum(gradient * normed, 1) / WIDTH)[:, None]
            result = inverse * (gradient - (tl.sum(gradient, 1) / WIDTH)[:, None] - normed * along)
            tl.store(dx + row * WIDTH + cols, result.to(dx.dtype.element_ty), mask=here)
        if dw is not None:
            dw_total += given * normed
        if db is not None:
            db_total += given
    own = tl.program_id(0).to(tl.int64) * WIDTH + tl.arange(0, BLOCK)
    if dw is not None:
        tl.store(dw + own, tl.sum(dw_total, 0), mask=tl.arange(0, BLOCK) < WIDTH)
    if db is not None:
        tl.store(db + own, tl.sum(db_total, 0), mask=tl.arange(0, BLOCK) < WIDTH)


def launch_spec(width: int) -> dict[str, int]:
    """Forward: a row in registers, two 128-bit loads of bf16 a thread at most. Not measured yet."""
    block = power_of_two(width)
    return {"WIDTH": width, "BLOCK": block, "num_warps": min(max(block // 512, 1), 32)}


def backward_spec(width: int) -> dict[str, int]:
    """Backward: tiles of 4096 values. A row of 1024 alone would leave most of a GPU's bandwidth unused, since
    few programs run and each waits for its rows; 8 warps keep 16 KB in flight. Not measured yet."""
    block = power_of_two(width)
    rows = max(4096 // block, 1) if block >= 64 else 64
    return {"WIDTH": width, "BLOCK": block, "ROWS": rows, "num_warps": min(max(rows * block // 512, 1), 32)}


def layer_norm_triton(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """As layer_norm_reference, on a GPU, with gradients for all three; x: rows of any stride."""
    check_rows(x)
    for vector in (weight, bias):
        if vector is not None:
            check_vector(vector, x.shape[-1], x.device)
    return _LayerNorm.apply(x, weight, bias, eps)


class _LayerNorm(torch.autograd.Function):
    """Keeps x alone; mean and deviation are computed again, which costs no memory traffic."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.eps = eps
        rows = as_rows(x)
        y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        args = (rows, weight, bias, y, rows.stride(0), eps)
        launch(_layer_norm_fwd_kernel, (len(rows),), *args, **launch_spec(x.shape[-1]))
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        rows, given = as_rows(x), as_rows(dy)
        spec = backward_spec(x.shape[-1])
        programs = min(-(-len(rows) // spec["ROWS"]), PROGRAMS)
        dx = torch.empty(x.shape, dtype=x.dtype, device=x.device) if ctx.needs_input_grad[0] else None
        dw, db = (
            x.new_empty(programs, x.shape[-1], dtype=torch.float32) if needed else None
            for needed in ctx.needs_input_grad[1:3]
        )
        args = (rows, weight, given, dx, dw, db, rows.stride(0), given.stride(0), len(rows), ctx.eps)
        launch(_layer_norm_bwd_kernel, (programs,), *args, **spec)
        return (
            dx,
            None if dw is None else dw.sum(0).to(weight.dtype),
            None if db is None else db.sum(0).to(bias.dtype),
            None,
        )


def layer_norm_cpu_takes(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether layer_norm_cpu can run it."""
    return rows_fit(x, weight, bias)


def layer_norm_cpu(
    library: ctypes.CDLL,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    pool: int | None = None,
    path: int = 0,
) -> Tensor:
    """As layer_norm_reference, in libowl_cpu, without gradients, for what layer_norm_cpu_takes. A row's bits
    depend on the row and the path alone."""
    x = x.contiguous()
    out, width = torch.empty_like(x), x.shape[-1]
    data = x.data_ptr(), address(weight), address(bias), out.data_ptr()
    function(library, "layer_norm")(pool, TYPES[x.dtype], *data, math.prod(x.shape[:-1]), width, eps, path)
    return out
