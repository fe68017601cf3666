"""Linear layer with gradients where no kernel runs: torch's products, and W a bounded piece at a time.

    y = residual + x W^T + b;   y[rows] += scale (dropout(x) A^T) B^T   for each update (lora_linear.py)

A quantized W, and a dense one of another dtype than the products', is written out in pieces: rows of it for
y, columns for dX = dy W. Each number is then one sum, as without pieces, and a whole copy of W is never
there. Inputs are exact, unlike in inference on quantized weights (quantized_linear.py).

Kept for backward: x if W or an update trains, and nothing else; a dropout mask is drawn again from its seed.
Shapes: x (..., K), W (N, K), b (N,), residual and y (..., N).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from owl_fast.kernels.autocast import autocast_dtype
from owl_fast.kernels.kept import kept
from owl_fast.kernels.lora_linear import LoraUpdate, Parts
from owl_fast.kernels.weights import Int4Weight, Int8Weight, Weight, dequantize

PIECE = 1 << 21  # weights written out at a time: 4 MB of bf16; half of it makes products slower
Expand = Callable[[Weight, torch.dtype], Tensor]  # as dequantize


def row_pieces(
    weight: Weight, dtype: torch.dtype, cut: bool = False, expand: Expand = dequantize
) -> Iterator[tuple[slice, Tensor]]:
    """(which rows, those of W (n, K) in `dtype`), one after the other. cut: a dense W as well: a library's
    product may copy its factors."""
    outputs, inputs = weight.shape
    if isinstance(weight, Tensor) and weight.dtype == dtype and not cut:
        yield slice(0, outputs), weight
        return
    count = max(PIECE // max(inputs, 1), 1)
    for first in range(0, outputs, count):
        rows = slice(first, min(first + count, outputs))
        if isinstance(weight, Tensor):
            part: Weight = weight[rows]
        else:
            part = weight._replace(q=weight.q[rows], scale=weight.scale[rows])
        yield rows, expand(part, dtype)


def column_pieces(
    weight: Weight, dtype: torch.dtype, cut: bool = False, expand: Expand = dequantize
) -> Iterator[tuple[slice, Tensor]]:
    """(which columns, those of W (N, k) in `dtype`), one after the other. cut: as in row_pieces."""
    outputs, inputs = weight.shape
    if isinstance(weight, Tensor) and weight.dtype == dtype and not cut:
        yield slice(0, inputs), weight
        return
    unit = math.lcm(2, weight.group) if isinstance(weight, Int4Weight) else 1
    count = max(PIECE // max(outputs, 1) // unit, 1) * unit
    for first in range(0, inputs, count):
        columns = slice(first, min(first + count, inputs))
        yield columns, expand(_columns(weight, columns), dtype)


def _columns(weight: Weight, columns: slice) -> Weight:
    """Columns of W; those of int4 begin where a group begins."""
    if isinstance(weight, Tensor):
        return weight[:, columns]
    if isinstance(weight, Int8Weight):
        return weight._replace(q=weight.q[:, columns])
    first, last, group = columns.start, columns.stop, weight.group
    q = weight.q[:, first // 2 : -(-last // 2)]
    return Int4Weight(q, weight.scale[:, first // group : -(-last // group)], last - first, group)


def linear_torch(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    updates: Sequence[LoraUpdate] = (),
    residual: Tensor | None = None,
    expand: Expand = dequantize,
) -> Tensor:
    """Gradients for x, a dense weight, bias, residual, and every a and b. Under autocast the products are of
    its dtype. expand: writes out pieces of W."""
    dtype = autocast_dtype(x) or x.dtype
    probability = updates[0].dropout if updates else 0.0
    # From the generator that checkpointing puts back; one mask for all updates, as in the kernels.
    mask = (int(torch.randint(1 << 62, ())), probability) if probability else None
    parts = tuple((u.start, u.end, u.scale) for u in updates)
    pairs = [t for update in updates for t in (update.a, update.b)]
    dense, packed = (weight, None) if isinstance(weight, Tensor) else (None, weight)
    y: Tensor = _Linear.apply(x.to(dtype), dense, packed, bias, residual, mask, parts, expand, *pairs)
    return y


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dense: Tensor | None,
        packed: Int8Weight | Int4Weight | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mask: tuple[int, float] | None,
        parts: Parts,
        expand: Expand,
        *pairs: Tensor,
    ) -> Tensor:
        wanted = ctx.needs_input_grad
        ctx.save_for_backward(x if wanted[1] or any(wanted[8:]) else None, dense, *pairs)
        ctx.packed, ctx.parts, ctx.mask, ctx.shape, ctx.dtype = packed, parts, mask, x.shape, x.dtype
        ctx.expand = expand
        ctx.dtypes = tuple(None if t is None else t.dtype for t in (bias, residual))
        weight = packed if dense is None else dense
        assert weight is not None
        with torch.autocast(x.device.type, enabled=False):
            (y,) = kept("linear", lambda: (_forward(x, weight, bias, residual, mask, parts, pairs, expand),))
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, dense, *pairs = ctx.saved_tensors
        weight = ctx.packed if dense is None else dense
        bias_dtype, residual_dtype = ctx.dtypes
        wanted_x, wanted_weight, _, wanted_bias, wanted_residual, *_ = ctx.needs_input_grad
        given = dy.reshape(-1, dy.shape[-1]).to(ctx.dtype)
        rows = None if x is None else x.reshape(-1, x.shape[-1])
        dx = _times(given, weight, ctx.expand) if wanted_x else None
        gradients = _update_gradients(given, rows, dx, ctx, pairs)
        return (
            None if dx is None else dx.view(ctx.shape),
            (given.T @ rows).to(dense.dtype) if wanted_weight and rows is not None else None,
            None,
            given.sum(0).to(bias_dtype) if wanted_bias else None,
            dy.to(residual_dtype) if wanted_residual else None,
            None,
            None,
            None,
            *gradients,
        )


def _forward(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: tuple[int, float] | None,
    parts: Parts,
    pairs: Sequence[Tensor],
    expand: Expand,
) -> Tensor:
    rows, dtype = x.reshape(-1, x.shape[-1]), x.dtype
    bias = None if bias is None else bias.to(dtype)
    if isinstance(weight, Tensor) and weight.dtype == dtype:
        y = F.linear(rows, weight, bias)
    else:
        y = rows.new_empty(len(rows), weight.shape[0])
        for places, part in row_pieces(weight, dtype, expand=expand):
            y[:, places] = F.linear(rows, part, None if bias is None else bias[places])
    factors = _factors(rows, mask) if parts else None
    source = rows if factors is None else rows * factors
    for (start, end, scale), a, b in zip(parts, pairs[::2], pairs[1::2], strict=True):
        y[:, start:end].addmm_(F.linear(source, a.to(dtype)), b.to(dtype).T, alpha=scale)
    y = y.view(*x.shape[:-1], -1)
    if residual is None:
        return y
    return y.add_(residual) if residual.dtype == dtype else y + residual


def _times(given: Tensor, weight: Weight, expand: Expand) -> Tensor:
    """given (M, N) -> given W (M, K)."""
    if isinstance(weight, Tensor) and weight.dtype == given.dtype:
        return given @ weight
    dx = given.new_empty(len(given), weight.shape[1])
    for columns, part in column_pieces(weight, given.dtype, expand=expand):
        dx[:, columns] = given @ part
    return dx


def _update_gradients(
    given: Tensor, rows: Tensor | None, dx: Tensor | None, ctx: Any, pairs: Sequence[Tensor]
) -> list[Tensor | None]:
    """dA and dB of each update, as far as they are wanted; what passes through A is added to dx.

    With x' = dropout(x), T = s x' A^T and dT = s dy B:  dA = dT^T x', dB = dy^T T, dX += mask(dT A).
    """
    gradients: list[Tensor | None] = []
    factors = _factors(given.new_empty(len(given), ctx.shape[-1]), ctx.mask)
    source = rows if rows is None or factors is None else rows * factors
    for i, (start, end, scale) in enumerate(ctx.parts):
        a, b = (t.to(given.dtype) for t in pairs[2 * i : 2 * i + 2])
        wanted_a, wanted_b = ctx.needs_input_grad[8 + 2 * i : 10 + 2 * i]
        part = given[:, start:end]
        dt = (part @ b).mul_(scale)
        if dx is not None:
            dx += dt @ a if factors is None else (dt @ a).mul_(factors)
        da = dt.T @ source if wanted_a and source is not None else None
        db = part.T @ F.linear(source, a).mul_(scale) if wanted_b and source is not None else None
        gradients += [
            None if da is None else da.to(pairs[2 * i].dtype),
            None if db is None else db.to(pairs[2 * i + 1].dtype),
        ]
    return gradients


def _factors(x: Tensor, mask: tuple[int, float] | None) -> Tensor | None:
    """What x is multiplied by for dropout of this seed and probability, the same whenever it is drawn."""
    if mask is None:
        return None
    seed, probability = mask
    generator = torch.Generator(x.device).manual_seed(seed)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device)
    words.random_(-(2**63), None, generator=generator)  # four places a number: a fifth of bernoulli_'s time
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    threshold = round(probability * 2**16)
    return (bits >= threshold - 2**15).to(x.dtype).mul_(1 / (1 - threshold / 2**16))
