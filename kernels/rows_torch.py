"""Norms and activations with gradients where no kernel runs: x alone is kept, the rest is computed again.

Plain torch would keep every step in between, the norms' in float32: three to six times x. Backward goes
through blocks of rows whose intermediate values stay in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

BLOCK = 1 << 17  # values of x at a time: half a megabyte in float32

Forward = Callable[..., Tensor]  # x (M, H) and vectors (H,) or None -> (M, F)


def rows_torch(
    run: Forward, reference: Forward, x: Tensor, *vectors: Tensor | None, gradient: Forward | None = None
) -> Tensor:
    """run(x, *vectors), with the gradients of `reference`, which is made of torch's operations.

    Both treat every row of x (..., H) alone. Gradients are computed in float32 at least, for x and for those
    vectors that want one. gradient: (x, *vectors, dy) -> dx where no vector wants one, which is faster.
    """
    y: Tensor = _Rows.apply(run, reference, gradient, x, *vectors)
    return y


def backward_bytes(values: int) -> int:
    """What backward takes for a while, of an x of so many values: five arrays of a block in float32."""
    return 5 * 4 * min(BLOCK, values)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        run: Forward,
        reference: Forward,
        gradient: Forward | None,
        x: Tensor,
        *vectors: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, *vectors)
        ctx.reference, ctx.gradient = reference, gradient
        return run(x, *vectors)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *vectors = ctx.saved_tensors
        wanted_x, *wanted = ctx.needs_input_grad[3:]
        if ctx.gradient is not None and not any(wanted):
            return None, None, None, ctx.gradient(x, *vectors, dy), *(None for _ in vectors)
        rows, given = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
        wide = torch.promote_types(x.dtype, torch.float32)
        leaves = [
            None if v is None else v.detach().to(wide).requires_grad_(w)
            for v, w in zip(vectors, wanted, strict=True)
        ]
        dx = torch.empty_like(rows) if wanted_x else None
        sums = [None if v is None or not v.requires_grad else torch.zeros_like(v) for v in leaves]
        count = max(BLOCK // max(x.shape[-1], 1), 1)
        for first in range(0, len(rows), count):
            block = slice(first, first + count)
            shares = _gradients(ctx.reference, rows[block].to(wide), given[block].to(wide), leaves, wanted_x)
            if dx is not None:
                dx[block] = shares.pop(0)
            for total, share in zip((s for s in sums if s is not None), shares, strict=True):
                total += share
        totals = [None if s is None else s.to(v.dtype) for s, v in zip(sums, vectors, strict=True)]
        return None, None, None, None if dx is None else dx.view(x.shape), *totals


def _gradients(
    reference: Forward, x: Tensor, given: Tensor, leaves: Sequence[Tensor | None], wanted_x: bool
) -> list[Tensor]:
    """Those of x, if it is wanted, and of the leaves that want one."""
    x = x.detach().requires_grad_(wanted_x)
    wanted = [leaf for leaf in (x, *leaves) if leaf is not None and leaf.requires_grad]
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        y = reference(x, *leaves)
    return list(torch.autograd.grad(y, wanted, given))
