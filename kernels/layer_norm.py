"""Layer norm over the last axis: y = (x - mean) / sqrt(var + eps) * weight + bias.

Computed in float32 and cast back to x's dtype, as the original vision tower and abstractor do (their
norms run in float32 whatever the model's dtype). Without weight and bias: the normed rows alone.

add_layer_norm is a residual connection and the norm behind it in one pass: s = x + update, y = norm(s).

Shapes: x (..., H), weight and bias (H,), each of any of the three dtypes -> (..., H) in x's dtype.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from owl_fast.kernels.launch import check, jit, launch, tl
from owl_fast.kernels.rows import as_rows, block_of, check_rows, check_vector

PROGRAMS = 256  # of the backward pass: as many partial sums for weight and bias; not measured yet


def layer_norm_reference(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """x (..., D), weight (D,), bias (D,) -> (..., D) in x's dtype."""
    wide = torch.promote_types(x.dtype, torch.float32)
    scale, shift = (None if v is None else v.to(wide) for v in (weight, bias))
    return F.layer_norm(x.to(wide), x.shape[-1:], scale, shift, eps).to(x.dtype)


def add_layer_norm_reference(
    x: Tensor, update: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """x and update (..., D) -> (x + update, its norm)."""
    total = x + update
    return total, layer_norm_reference(total, weight, bias, eps)


@jit
def _layer_norm_fwd_kernel(
    x,
    update,
    weight,
    bias,
    total,
    y,
    x_stride,
    update_stride,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row per program: x, update (N, H) of any row stride -> total, y (N, H) contiguous.

    With an update the row that is normed is the rounded sum, which is also what the backward pass reads.
    """
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    inside = cols < WIDTH
    values = tl.load(x + row * x_stride + cols, mask=inside, other=0.0).to(tl.float32)
    if update is not None:
        values += tl.load(update + row * update_stride + cols, mask=inside, other=0.0).to(tl.float32)
        rounded = values.to(total.dtype.element_ty)
        tl.store(total + row * WIDTH + cols, rounded, mask=inside)
        values = rounded.to(tl.float32)
    centred = tl.where(inside, values - tl.sum(values) / WIDTH, 0.0)
    normed = centred * (1.0 / tl.sqrt(tl.sum(centred * centred) / WIDTH + eps))
    if weight is not None:
        normed *= tl.load(weight + cols, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        normed += tl.load(bias + cols, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * WIDTH + cols, normed.to(y.dtype.element_ty), mask=inside)


@jit
def _layer_norm_bwd_kernel(
    x,
    weight,
    dy,
    dtotal,
    dx,
    dw,
    db,
    x_stride,
    dy_stride,
    dtotal_stride,
    rows,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """With n the normed row and g = dy * weight:  dx = (g - mean(g) - n mean(g n)) / std [+ dtotal].

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
            if dtotal is not None:
                result += tl.load(dtotal + row * dtotal_stride + cols, mask=here, other=0.0).to(tl.float32)
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
    """Forward: a row in registers, 16 values a thread at most, two 128-bit loads of bf16. Not measured yet."""
    block = block_of(width)
    return {"WIDTH": width, "BLOCK": block, "num_warps": min(max(block // 512, 1), 32)}


def backward_spec(width: int) -> dict[str, int]:
    """Backward: tiles of 4096 values. A row of 1024 alone would leave most of a GPU's bandwidth unused, since
    few programs run (PROGRAMS) and each waits for its rows; 8 warps keep 16 KB in flight. Not measured yet."""
    block = block_of(width)
    rows = max(4096 // block, 1) if block >= 64 else 64
    return {"WIDTH": width, "BLOCK": block, "ROWS": rows, "num_warps": min(max(rows * block // 512, 1), 32)}


def layer_norm_triton(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """As layer_norm_reference, on a GPU, with gradients for all three; x: rows of any stride."""
    _check(x, weight, bias)
    return _LayerNorm.apply(x, weight, bias, eps)


def add_layer_norm_triton(
    x: Tensor, update: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """As add_layer_norm_reference, on a GPU, with gradients for all four."""
    _check(x, weight, bias)
    fits = (update.shape, update.dtype, update.device) == (x.shape, x.dtype, x.device)
    check(fits, update, f"{x.dtype} {tuple(x.shape)} on {x.device}")
    return _AddLayerNorm.apply(x, update, weight, bias, eps)


def _check(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    check_rows(x)
    for vector in (weight, bias):
        if vector is not None:
            check_vector(vector, x.shape[-1], x.device)


class _LayerNorm(torch.autograd.Function):
    """Keeps x alone; mean and deviation are computed again, which costs no memory traffic."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.eps = eps
        return _forward(x, None, weight, bias, eps)[1]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return *_backward(ctx, dy, None, ctx.needs_input_grad[:3]), None


class _AddLayerNorm(torch.autograd.Function):
    """Keeps the sum, which is one of the results."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, update: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        total, y = _forward(x, update, weight, bias, eps)
        assert total is not None
        ctx.save_for_backward(total, weight, bias)
        ctx.eps = eps
        return total, y

    @staticmethod
    def backward(ctx: Any, dtotal: Tensor, dy: Tensor) -> tuple[Tensor | None, ...]:
        first, second, *others = ctx.needs_input_grad[:4]
        dx, dw, db = _backward(ctx, dy, dtotal, (first or second, *others))
        return dx, dx, dw, db, None


def _forward(
    x: Tensor, update: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor | None, Tensor]:
    """(x + update, or None without an update; the normed rows)."""
    rows, added = as_rows(x), None if update is None else as_rows(update)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = None if update is None else torch.empty_like(y)
    strides = rows.stride(0), 0 if added is None else added.stride(0)
    args = (rows, added, weight, bias, total, y, *strides, eps)
    launch(_layer_norm_fwd_kernel, (len(rows),), *args, **launch_spec(x.shape[-1]))
    return total, y


def _backward(
    ctx: Any, dy: Tensor, dtotal: Tensor | None, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of (the normed rows, weight, bias), as far as `wanted` says."""
    x, weight, bias = ctx.saved_tensors
    rows, given = as_rows(x), as_rows(dy)
    direct = None if dtotal is None else as_rows(dtotal)
    spec = backward_spec(x.shape[-1])
    programs = min(-(-len(rows) // spec["ROWS"]), PROGRAMS)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device) if wanted[0] else None
    dw, db = (
        x.new_empty(programs, x.shape[-1], dtype=torch.float32) if needed else None for needed in wanted[1:]
    )
    strides = rows.stride(0), given.stride(0), 0 if direct is None else direct.stride(0)
    args = (rows, weight, given, direct, dx, dw, db, *strides, len(rows), ctx.eps)
    launch(_layer_norm_bwd_kernel, (programs,), *args, **spec)
    return (
        dx,
        None if dw is None else dw.sum(0).to(weight.dtype),
        None if db is None else db.sum(0).to(bias.dtype),
    )
