"""Sum of token losses straight from hidden states: -sum_i log softmax(W h_i)[t_i], softmax in float32.

M labelled rows, D hidden width, V vocabulary. W (V, D) is dense or quantized (weights.py).

On a GPU rows go through in chunks: the library's matrix product writes a chunk's logits into one buffer, one
kernel turns them in place into their gradient (and leaves each row's loss), and two more products give this
chunk's share of dH and, where the head trains, of dW. Backward is then a scaling by what comes from above.
The reason: the three products are all there is to do (logits are read and written once beside them, 5 % of
the time at 4096 x 4096 x 32000 on an H200), and no kernel of ours is faster at them than the library.
Computing the logits once more in backward instead would cost a third more.

Memory beyond the inputs, whatever M is: the buffer of logits (CHUNK_BYTES) and, where the head is quantized,
the slice of it that is written out at the time (SLICE_BYTES) and a float32 sum of a chunk's dH. Slices are
written out rather than taken apart inside a product of our own: at 2048 rows a slice's 64 MB are a tenth of
its two products, less than what such a product loses against the library. Kept for backward: dH (M, D) in
the dtype of H; when W trains also dW (V, D), summed in float32 if there are several chunks.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from owl_fast.kernels.dequantize import check_quantized, dequantize_rows
from owl_fast.kernels.launch import GPU_DTYPES, check, jit, launch, power_of_two, tl
from owl_fast.kernels.weights import Weight, dequantize

# 2048 rows of bf16 logits of 32000 words: enough for products at full speed; not measured yet.
CHUNK_BYTES = 128 << 20
SLICE_BYTES = 64 << 20  # 8192 rows of a head of width 4096 in bf16; not measured yet
TILE = 256  # chunks are multiples of it where they are larger: the products' tiles are then full


def linear_cross_entropy_reference(hidden: Tensor, weight: Weight, targets: Tensor) -> Tensor:
    """hidden (M, D) of labelled rows, weight (V, D), targets (M,) int64 -> scalar, at least float32."""
    logits = F.linear(hidden, weight if isinstance(weight, Tensor) else dequantize(weight, hidden.dtype))
    return F.cross_entropy(
        logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="sum"
    )


@jit
def _softmax_gradient_kernel(
    logits, targets, losses, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr, GRADIENT: tl.constexpr
):
    """One row per program: logits (M, V) -> losses (M,); then logits = softmax(logits) - onehot(target).

    The second look at the row comes from the L2 cache.
    """
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    known = (target >= 0) & (target < WIDTH)
    right = tl.load(logits + target, mask=known, other=float("nan")).to(tl.float32)
    largest = float("-inf")
    total = 0.0
    for start in range(0, WIDTH, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        values = tl.load(logits + cols, mask=cols < WIDTH, other=float("-inf")).to(tl.float32)
        before = largest
        largest = tl.maximum(before, tl.max(values))
        total = total * tl.exp(before - largest) + tl.sum(tl.exp(values - largest))
    tl.store(losses + row, largest + tl.log(total) - right)
    if GRADIENT:
        share = 1.0 / total
        for start in range(0, WIDTH, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            inside = cols < WIDTH
            values = tl.load(logits + cols, mask=inside, other=float("-inf")).to(tl.float32)
            values = tl.exp(values - largest) * share - (cols == target).to(tl.float32)
            tl.store(logits + cols, values.to(logits.dtype.element_ty), mask=inside)


@jit
def _scale_kernel(x, factor, y, count, BLOCK: tl.constexpr):
    """y = x * factor, the product in float32; torch would round the factor to the dtype of x first."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    values = tl.load(x + index, mask=inside, other=0.0).to(tl.float32) * tl.load(factor).to(tl.float32)
    tl.store(y + index, values.to(y.dtype.element_ty), mask=inside)


def launch_spec(vocabulary: int) -> dict[str, int]:
    """Steps of 4096 logits: 16 a thread, two 128-bit loads of bf16; several rows share a multiprocessor, so
    that one loads while another sums. Not measured yet."""
    block = min(power_of_two(vocabulary), 4096)
    return {"WIDTH": vocabulary, "BLOCK": block, "num_warps": min(max(block // 512, 1), 8)}


def chunk_rows(rows: int, vocabulary: int, itemsize: int) -> int:
    """Rows of a chunk: as few chunks as fit into CHUNK_BYTES, of nearly one size."""
    most = max(CHUNK_BYTES // (_padded(vocabulary) * itemsize), 1)
    tile = TILE if most >= TILE else 1
    most -= most % tile
    even = -(-rows // -(-rows // most))
    return min(-(-even // tile) * tile, most, rows)


def linear_cross_entropy_triton(hidden: Tensor, weight: Weight, targets: Tensor) -> Tensor:
    """As linear_cross_entropy_reference, on a GPU; gradients for hidden and a dense weight.

    A target outside of the vocabulary makes the loss NaN: looking at it would hold up the host.
    """
    check(hidden.dim() == 2 and hidden.dtype in GPU_DTYPES, hidden, "fp32, bf16 or fp16 (M, D)")
    wanted = f"(V, {hidden.shape[1]}) on {hidden.device}"
    if isinstance(weight, Tensor):
        fits = weight.dim() == 2 and weight.dtype == hidden.dtype and weight.device == hidden.device
        check(fits and weight.shape[1] == hidden.shape[1], weight, f"a {hidden.dtype} head {wanted}")
    else:
        fits = weight.shape[1] == hidden.shape[1] and weight.q.device == hidden.device
        check(fits, weight.q, f"a quantized head {wanted}")
        check_quantized(weight)
    fits = targets.shape == hidden.shape[:1] and targets.dtype == torch.int64
    check(
        fits and targets.is_contiguous() and targets.device == hidden.device,
        targets,
        f"contiguous int64 ({len(hidden)},) on {hidden.device}",
    )
    trains = isinstance(weight, Tensor) and weight.requires_grad
    needs = (hidden.requires_grad, trains) if torch.is_grad_enabled() else (False, False)
    return _LinearCrossEntropy.apply(hidden, weight, targets, needs)


class _LinearCrossEntropy(torch.autograd.Function):
    """Gradients are made in forward, while the logits are there."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Weight, targets: Tensor, needs: tuple[bool, bool]
    ) -> Tensor:
        losses, dx, dw = _losses_and_gradients(hidden, weight, targets, needs)
        ctx.save_for_backward(dx, dw)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        dx, dw = (None if x is None else _scaled(x, dloss) for x in ctx.saved_tensors)
        return dx, dw, None, None


def _losses_and_gradients(
    hidden: Tensor, weight: Weight, targets: Tensor, needs: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Losses (M,) fp32, dH (M, D) and dW (V, D) of their sum, as far as they are needed."""
    rows, vocabulary = len(hidden), weight.shape[0]
    losses = hidden.new_empty(rows, dtype=torch.float32)
    dx = torch.empty_like(hidden) if needs[0] else None
    dw = hidden.new_zeros(weight.shape) if needs[1] and rows == 0 else None
    size = chunk_rows(rows, vocabulary, hidden.itemsize) if rows else 1
    buffer = hidden.new_empty(min(size, rows), _padded(vocabulary))[:, :vocabulary]
    head = _Head(weight, hidden)
    for first in range(0, rows, size):
        chunk = slice(first, first + size)
        logits = buffer[: len(hidden[chunk])]
        for words, part in head.slices():
            torch.mm(hidden[chunk], part.T, out=logits[:, words])
        args = (logits, targets[chunk], losses[chunk], logits.stride(0))
        launch(
            _softmax_gradient_kernel, (len(logits),), *args, GRADIENT=any(needs), **launch_spec(vocabulary)
        )
        if dx is not None:
            shares = (logits[:, words] @ part for words, part in head.slices())
            dx[chunk] = functools.reduce(_added, shares)
        if needs[1]:
            share = logits.T @ hidden[chunk]
            dw = share if dw is None else _added(dw, share)
    return losses, dx, None if dw is None else dw.to(hidden.dtype)


class _Head:
    """The weight in slices of its vocabulary, each as a dense matrix: all at once if it is one already."""

    def __init__(self, weight: Weight, like: Tensor) -> None:
        self.weight = weight
        if not isinstance(weight, Tensor):
            rows = max(SLICE_BYTES // (weight.shape[1] * like.itemsize), 1)
            self.buffer = like.new_empty(min(rows, weight.shape[0]), weight.shape[1])

    def slices(self) -> Iterator[tuple[slice, Tensor]]:
        """(which words, their rows of W (n, D)); a matrix is there until the next one is asked for."""
        vocabulary = self.weight.shape[0]
        if isinstance(self.weight, Tensor):
            yield slice(0, vocabulary), self.weight
            return
        for first in range(0, vocabulary, len(self.buffer)):
            part = self.buffer[: vocabulary - first]
            dequantize_rows(self.weight, first, part)
            yield slice(first, first + len(part)), part


def _added(total: Tensor, share: Tensor) -> Tensor:
    """The sum in float32, in place of `total` where that is float32 already."""
    return total.float().add_(share)


def _padded(vocabulary: int) -> int:
    """Length of a row of logits in memory: rows begin where 128-bit loads can."""
    return -(-vocabulary // 64) * 64


def _scaled(x: Tensor, factor: Tensor) -> Tensor:
    y = torch.empty_like(x)
    block = 2048  # 16 values a thread
    launch(_scale_kernel, (-(-x.numel() // block),), x, factor, y, x.numel(), BLOCK=block, num_warps=4)
    return y
