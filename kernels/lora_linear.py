"""Linear layer with low-rank updates on any subset of its output rows (LoRA, arXiv 2106.09685).

    y = x W^T + b;   y[rows] += scale * (dropout(x) A^T) B^T   for each update

Fused weights (q, k, v in one) keep one update per part, so each names the output rows it belongs to. In the
kernels the updates of a weight are one: A's above each other, B's beside each other with zeros where a part
has none, and one dropout mask for all. W may be quantized and is then frozen.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from owl_fast.kernels.autocast import autocast_dtype
from owl_fast.kernels.dropout import Dropout
from owl_fast.kernels.kept import kept
from owl_fast.kernels.launch import check
from owl_fast.kernels.linear_backward import input_gradient, low_rank_gradients, outer
from owl_fast.kernels.linear_many_rows import linear_many_rows
from owl_fast.kernels.linear_tiles import check_linear
from owl_fast.kernels.quick_gelu import quick_gelu_reference, quick_gelu_triton
from owl_fast.kernels.rms_norm import rms_norm_reference
from owl_fast.kernels.rows import as_rows
from owl_fast.kernels.swiglu import swiglu_reference, swiglu_triton
from owl_fast.kernels.weights import Int4Weight, Int8Weight, StackedLora, Weight, dequantize

Parts = tuple[tuple[int, int, float], ...]  # first and last + 1 output row, and scale, of each update


class LoraUpdate(NamedTuple):
    """One low-rank update: output rows [start, end), A (r, in), B (end - start, r)."""

    start: int
    end: int
    a: Tensor
    b: Tensor
    scale: float
    dropout: float  # 0 outside training


def lora_linear_reference(
    x: Tensor, weight: Weight, bias: Tensor | None, updates: Sequence[LoraUpdate] = ()
) -> Tensor:
    """x (..., in), weight (out, in), bias (out,) or None -> (..., out)."""
    y = F.linear(x, weight if isinstance(weight, Tensor) else dequantize(weight, x.dtype), bias)
    return add_updates_reference(y, x, updates)


def add_updates_reference(y: Tensor, x: Tensor, updates: Sequence[LoraUpdate]) -> Tensor:
    """y (..., out) of the same x, changed in place."""
    for start, end, a, b, scale, dropout in updates:
        source = F.dropout(x, dropout) if dropout else x
        y[..., start:end] += scale * F.linear(F.linear(source, a.to(x.dtype)), b.to(x.dtype))
    return y


def fused_linear_reference(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    lora: StackedLora | None = None,
    *,
    norm: tuple[Tensor, float] | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """act(rms_norm(x) W^T + b + lora) + residual: x (M, K), W (N, K) -> (M, N), after "swiglu" (M, N / 2)."""
    if norm is not None:
        x = rms_norm_reference(x, *norm)
    y = F.linear(x, dequantize(weight, x.dtype), bias)
    if lora is not None:
        y = add_stacked_reference(y, x, lora)
    if activation is not None:
        y = swiglu_reference(y) if activation == "swiglu" else quick_gelu_reference(y)
    return y if residual is None else y + residual


def add_stacked_reference(y: Tensor, x: Tensor, lora: StackedLora) -> Tensor:
    """y (M, N) of x (M, K), with each row's own adapter added."""
    owner = lora.owner if lora.owner is not None else x.new_zeros(len(x), dtype=torch.int32)
    for i, (a, b, scale) in enumerate(zip(*(t.to(x.dtype) for t in lora[:3]), strict=True)):
        y = torch.where(owner[:, None] == i, y + F.linear(F.linear(x, a) * scale, b), y)
    return y


def lora_linear_triton(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    updates: Sequence[LoraUpdate] = (),
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """As lora_linear_reference, on a GPU with gradients for x, dense weight, bias, residual, every a and b.

    activation and residual as linear_many_rows takes them. Where a gradient is wanted an activation is an
    operation of its own: its backward needs its input, which a fused kernel would have to write as well.
    Under autocast x, weight and bias are cast first, as torch's linear casts them; the cast weight is made
    again for backward.
    """
    own = weight
    if (dtype := autocast_dtype(x)) is not None:
        x, bias = x.to(dtype), None if bias is None else bias.to(dtype)
        weight = weight.to(dtype) if isinstance(weight, Tensor) else weight
    check_linear(x, weight, bias)
    check_updates(updates, x, weight.shape[0])
    dropout = Dropout.draw(updates[0].dropout) if updates and updates[0].dropout else None
    parts = tuple((u.start, u.end, u.scale) for u in updates)
    pairs = [t for update in updates for t in (update.a, update.b)]
    tensors = [t for t in (x, weight, bias, residual, *pairs) if isinstance(t, Tensor)]
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in tensors):
        lora = _stacked(parts, pairs, weight.shape[0], x.dtype)
        if residual is None or residual.dtype == x.dtype:
            return linear_many_rows(
                x, weight, bias, lora, activation=activation, residual=residual, dropout=dropout
            )
        return residual + linear_many_rows(x, weight, bias, lora, activation=activation, dropout=dropout)
    del weight
    dense, packed = (own, None) if isinstance(own, Tensor) else (None, own)
    fused = residual if activation is None else None
    y: Tensor = _LoraLinear.apply(x, dense, packed, bias, fused, dropout, parts, *pairs)
    if activation is None:
        return y
    y = swiglu_triton(y) if activation == "swiglu" else quick_gelu_triton(y)
    return y if residual is None else residual + y


class _LoraLinear(torch.autograd.Function):
    """Keeps the dropout's seed, and x if the weight or an update trains; the weights are the caller's."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dense: Tensor | None,
        packed: Int8Weight | Int4Weight | None,
        bias: Tensor | None,
        residual: Tensor | None,
        dropout: Dropout | None,
        parts: Parts,
        *pairs: Tensor,
    ) -> Tensor:
        wanted = ctx.needs_input_grad
        ctx.save_for_backward(x if wanted[1] or any(wanted[7:]) else None, dense, *pairs)
        ctx.packed, ctx.dropout, ctx.parts = packed, dropout, parts
        ctx.shape, ctx.dtype = x.shape, x.dtype
        ctx.residual = None if residual is None else residual.dtype
        same = residual if ctx.residual == x.dtype else None

        def forward() -> tuple[Tensor]:
            weight = _either(dense, packed, x.dtype)
            lora = _stacked(parts, pairs, weight.shape[0], x.dtype)
            y = linear_many_rows(x, weight, bias, lora, residual=same, dropout=dropout)
            return (y if residual is None or same is not None else residual + y,)

        return kept("linear", forward)[0]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, dense, *pairs = ctx.saved_tensors
        wanted_x, wanted_weight, _, wanted_bias, wanted_residual, *_ = ctx.needs_input_grad
        given = as_rows(dy).to(ctx.dtype)
        weight = _either(dense, ctx.packed, given.dtype)
        lora, dt = _stacked(ctx.parts, pairs, weight.shape[0], given.dtype), None
        gradients: list[Tensor | None] = [None] * len(pairs)
        if lora is not None:
            wanted = ctx.needs_input_grad[7:]
            da, db, dt = low_rank_gradients(
                None if x is None else as_rows(x),
                given,
                lora,
                ctx.dropout,
                (any(wanted[::2]), any(wanted[1::2])),
            )
            gradients = _parted(da, db, ctx.parts, pairs, wanted)
        dx = None
        if wanted_x:
            dx = input_gradient(given, weight, lora, dt, ctx.dropout).view(ctx.shape)
        dw = outer(given, as_rows(x), dense.dtype) if wanted_weight else None
        # One pass over dy at the speed of memory: torch's reduction has a fixed order and sums in fp32.
        db_sum = given.sum(0) if wanted_bias else None
        dr = dy.to(ctx.residual) if wanted_residual else None
        return dx, dw, None, db_sum, dr, None, None, *gradients


def _either(dense: Tensor | None, packed: Int8Weight | Int4Weight | None, dtype: torch.dtype) -> Weight:
    """The weight as products take it."""
    if dense is not None:
        return dense.to(dtype)
    assert packed is not None
    return packed


def stack_updates(updates: Sequence[LoraUpdate], outputs: int, dtype: torch.dtype) -> StackedLora:
    """Updates of a weight (outputs, in), at least one, as one adapter; a copy, which later changes miss."""
    parts = tuple((u.start, u.end, u.scale) for u in updates)
    stacked = _stacked(parts, [t for update in updates for t in (update.a, update.b)], outputs, dtype)
    assert stacked is not None
    return stacked


def stack_adapters(adapters: Sequence[Sequence[LoraUpdate]], outputs: int, dtype: torch.dtype) -> StackedLora:
    """The same for several adapters side by side, at least one of which has an update of the weight."""
    ones = {i: stack_updates(updates, outputs, dtype) for i, updates in enumerate(adapters) if updates}
    rank = max(one.scale.shape[1] for one in ones.values())
    like = next(iter(ones.values()))
    a = like.a.new_zeros(len(adapters), rank, like.a.shape[2])
    b = like.b.new_zeros(len(adapters), outputs, rank)
    scale = like.scale.new_zeros(len(adapters), rank)
    for i, one in ones.items():
        own = one.scale.shape[1]
        a[i, :own], b[i, :, :own], scale[i, :own] = one.a[0], one.b[0], one.scale[0]
    return StackedLora(a, b, scale)


def _stacked(parts: Parts, pairs: Sequence[Tensor], outputs: int, dtype: torch.dtype) -> StackedLora | None:
    """All updates of a weight as one: A's above each other, B's beside each other in their rows."""
    if not parts:
        return None
    a = torch.cat([a.detach().to(dtype) for a in pairs[::2]])
    b = a.new_zeros(outputs, len(a))
    place = 0
    for (start, end, _), part in zip(parts, pairs[1::2], strict=True):
        b[start:end, place : place + part.shape[1]] = part.detach()
        place += part.shape[1]
    scales = tuple((len(a), scale) for a, (_, _, scale) in zip(pairs[::2], parts, strict=True))
    return StackedLora(a[None], b[None], _scales(scales, a.device), None)


@functools.cache
def _scales(parts: tuple[tuple[int, float], ...], device: torch.device) -> Tensor:
    """(1, R), the scale of every rank; kept, because a copy to a GPU waits for it."""
    return torch.tensor([[scale for rank, scale in parts for _ in range(rank)]], device=device)


def _parted(
    da: Tensor | None, db: Tensor | None, parts: Parts, pairs: Sequence[Tensor], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """dA (R, K) and dB^T (R, N) of all updates -> the gradient of each a and b that wants one."""
    gradients: list[Tensor | None] = []
    place = 0
    for i, (start, end, _) in enumerate(parts):
        a, b = pairs[2 * i], pairs[2 * i + 1]
        ranks = slice(place, place + len(a))
        gradients.append(da[ranks].to(a.dtype) if da is not None and wanted[2 * i] else None)
        wants_b = wanted[2 * i + 1]
        gradients.append(db[ranks, start:end].T.to(b.dtype) if db is not None and wants_b else None)
        place += len(a)
    return gradients


def check_updates(updates: Sequence[LoraUpdate], x: Tensor, outputs: int) -> None:
    """Updates fit a weight (outputs, in) and share one dropout, for they share its mask."""
    for update in updates:
        start, end, a, b, _, dropout = update
        check(0 <= start < end <= outputs, f"rows [{start}, {end})", f"some of the weight's {outputs} rows")
        check(a.dim() == 2 and a.shape[1] == x.shape[-1] and a.device == x.device, a, f"(r, {x.shape[-1]})")
        check(b.shape == (end - start, len(a)) and b.device == x.device, b, f"{(end - start, len(a))}")
        same = dropout == updates[0].dropout and 0 <= dropout < 1
        check(same, f"dropout {dropout}", f"{updates[0].dropout}, as the first update has, in [0, 1)")
