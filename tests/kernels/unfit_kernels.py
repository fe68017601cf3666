"""Kernels with the faults that `kernel-resources` looks for, one each, and one without."""

from __future__ import annotations

import torch

from benchmarks.cases.ops.case import Case, Work
from owl_fast.kernels.launch import jit, launch, tl


@jit
def _fit_kernel(x, y, BLOCK: tl.constexpr):
    cols = tl.arange(0, BLOCK)
    tl.store(y + cols, tl.load(x + cols) * 2)


@jit
def _spilling_kernel(x, y, BLOCK: tl.constexpr):
    """One warp holds the whole row, in registers it has not got: all of it is needed at the end."""
    cols = tl.arange(0, BLOCK)
    values = tl.load(x + cols)
    tl.store(y + cols, tl.cumsum(values, 0) / tl.sum(values))


@jit
def _atomic_kernel(x, y, BLOCK: tl.constexpr):
    cols = tl.arange(0, BLOCK)
    tl.atomic_add(y + cols % 8, tl.load(x + cols))


@jit
def _large_kernel(x, y, BLOCK: tl.constexpr):
    """Both operands of a product this wide go through shared memory."""
    rows, cols = tl.arange(0, 128)[:, None], tl.arange(0, BLOCK)
    a = tl.load(x + rows * BLOCK + cols[None, :]).to(tl.bfloat16)
    b = tl.load(x + cols[:, None] * 128 + tl.arange(0, 128)[None, :]).to(tl.bfloat16)
    tl.store(y + rows * 128 + tl.arange(0, 128)[None, :], tl.dot(a, b))


@jit
def _broken_kernel(x, y, BLOCK: tl.constexpr):
    tl.store(y + tl.arange(0, BLOCK), tl.load(x + tl.arange(0, 2 * BLOCK)))


def _case(kernel: object, block: int, **settings: int) -> Case:
    def make(device: torch.device) -> Work:
        x, y = (torch.empty(1 << 17, device=device) for _ in range(2))
        return Work(lambda: launch(kernel, (1,), x, y, BLOCK=block, **settings), nbytes=x.nbytes)

    return Case(kernel.__name__.strip("_"), f"N{block}", make)


CASES = (
    _case(_fit_kernel, 1024, num_warps=4),
    _case(_spilling_kernel, 8192, num_warps=1),
    _case(_atomic_kernel, 256, num_warps=4),
    _case(_large_kernel, 512, num_warps=8),
    _case(_broken_kernel, 256, num_warps=4),
)
