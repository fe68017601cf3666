"""Head and loss in one where no kernel runs: linear_cross_entropy.py's method with torch's operations.

Logits of some rows are there at a time, and turn in place into their gradient; a quantized head is written
out a piece at a time. Gradients are made in forward, where the logits are. Kept for backward: dH (M, D), and
dW (V, D) where the head trains.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from owl_fast.kernels.autocast import autocast_dtype
from owl_fast.kernels.linear_cross_entropy import SLICE_BYTES, chunk_rows
from owl_fast.kernels.linear_torch import PIECE, Expand, column_pieces, row_pieces
from owl_fast.kernels.weights import Weight, dequantize

CHUNK_BYTES = 16 << 20  # 256 rows of bf16 logits of 32000 words
SOFTMAX_ROWS = 8  # whose logits in float32 stay in the cache


def linear_cross_entropy_torch(
    hidden: Tensor, weight: Weight, targets: Tensor, expand: Expand = dequantize
) -> Tensor:
    """As linear_cross_entropy_reference, with gradients for hidden and a dense weight; under autocast the
    products are of its dtype. expand: writes out pieces of the weight."""
    dtype = autocast_dtype(hidden) or hidden.dtype
    trains = isinstance(weight, Tensor) and weight.requires_grad
    needs = (hidden.requires_grad, trains) if torch.is_grad_enabled() else (False, False)
    # The weight twice: as what wants a gradient, and as what may be no tensor.
    loss: Tensor = _Loss.apply(hidden, weight if trains else None, weight, targets, dtype, needs, expand)
    return loss


def loss_bytes(rows: int, vocabulary: int, width: int, itemsize: int, packed: bool, gpu: bool) -> int:
    """What the loss of so many rows takes for a while, inputs and results not counted. packed: the head is
    quantized; gpu: linear_cross_entropy_triton computes it."""
    if gpu:
        chunk = chunk_rows(max(rows, 1), vocabulary, itemsize)
        return chunk * vocabulary * itemsize + packed * (SLICE_BYTES + 4 * chunk * width)
    chunk = min(max(CHUNK_BYTES // (vocabulary * itemsize), 1), rows)
    words = min(max(PIECE // width, 1), vocabulary)
    piece = max(chunk * words * itemsize, 3 * SOFTMAX_ROWS * vocabulary * 4)
    return chunk * vocabulary * itemsize + piece + packed * words * width * itemsize


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        _trained: Tensor | None,
        weight: Weight,
        targets: Tensor,
        dtype: torch.dtype,
        needs: tuple[bool, bool],
        expand: Expand,
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            loss, dx, dw = _loss_and_gradients(hidden, weight, targets, dtype, needs, expand)
        ctx.save_for_backward(dx, dw)
        return loss

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        dx, dw = (None if x is None else (x * dloss).to(x.dtype) for x in ctx.saved_tensors)
        return dx, dw, None, None, None, None, None


def _loss_and_gradients(
    hidden: Tensor,
    weight: Weight,
    targets: Tensor,
    dtype: torch.dtype,
    needs: tuple[bool, bool],
    expand: Expand,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The summed loss, in float32 at least, and dH and dW as far as they are needed."""
    rows, vocabulary = len(hidden), weight.shape[0]
    wide = torch.promote_types(dtype, torch.float32)
    losses = hidden.new_empty(rows, dtype=wide)
    dx = torch.empty_like(hidden) if needs[0] else None
    dw = hidden.new_zeros(weight.shape, dtype=wide) if needs[1] else None
    count = min(max(CHUNK_BYTES // (vocabulary * dtype.itemsize), 1), max(rows, 1))
    buffer = hidden.new_empty(count, vocabulary, dtype=dtype)
    for first in range(0, rows, count):
        chunk = slice(first, first + count)
        x = hidden[chunk].to(dtype)
        logits = buffer[: len(x)]
        for words, part in row_pieces(weight, dtype, cut=True, expand=expand):
            logits[:, words] = x @ part.T
        _softmax_gradient_(logits, targets[chunk], losses[chunk], any(needs))
        if dx is not None:
            for columns, part in column_pieces(weight, dtype, cut=True, expand=expand):
                dx[chunk, columns] = (logits @ part).to(dx.dtype)
        if dw is not None:
            dw += logits.T @ x
    return losses.sum(), dx, dw


def _softmax_gradient_(logits: Tensor, targets: Tensor, losses: Tensor, gradient: bool) -> None:
    """logits (m, V) -> losses (m,); then, if wanted, logits = softmax(logits) - onehot(targets)."""
    for first in range(0, len(logits), SOFTMAX_ROWS):
        rows = slice(first, first + SOFTMAX_ROWS)
        values, words = logits[rows].to(losses.dtype), targets[rows, None]
        total = values.logsumexp(-1, keepdim=True)
        losses[rows] = (total - values.gather(-1, words))[:, 0]
        if gradient:
            shares = (values - total).exp_()
            shares.scatter_add_(-1, words, -torch.ones_like(words, dtype=shares.dtype))
            logits[rows] = shares.to(logits.dtype)
