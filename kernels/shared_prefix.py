"""A prefix that all sequences of a packed batch begin with, as rows that are there once.

The batch's N rows are the prefix's P, then every sequence's own. Attention alone needs the sequences whole:
lay_out() repeats the prefix before each of them (M rows), take_back() drops the copies again. Gradients of
the copies are summed in a fixed order, so that they have the same bits every time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor


class SharedPrefix(NamedTuple):
    """rows (M,): of the batch, in the order of the whole sequences. kept (N,): where among those each row of
    the batch comes from. copies (B, P): where the prefix is among them. All int64."""

    rows: Tensor
    kept: Tensor
    copies: Tensor

    @classmethod
    def of(cls, length: int, bounds: Sequence[int]) -> SharedPrefix:
        """For a prefix of so many tokens; bounds of the whole sequences, all of them longer."""
        starts = list(accumulate((end - start - length for start, end in pairwise(bounds)), initial=length))
        prefix = torch.arange(length)
        own = [torch.arange(start, end) for start, end in pairwise(starts)]
        whole = [torch.arange(start + length, end) for start, end in pairwise(bounds)]
        return cls(
            torch.cat([part for rows in own for part in (prefix, rows)]),
            torch.cat([prefix, *whole]),
            torch.tensor(bounds[:-1])[:, None] + prefix,
        )

    def to(self, device: torch.device) -> SharedPrefix:
        return SharedPrefix(*(part.to(device) for part in self))

    def lay_out(self, x: Tensor) -> Tensor:
        """x (N, ...) -> (M, ...)."""
        return _LayOut.apply(x, self)

    def take_back(self, x: Tensor) -> Tensor:
        """x (M, ...) -> (N, ...): of the prefix the first copy."""
        return _TakeBack.apply(x, self)


class _LayOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shared: SharedPrefix) -> Tensor:
        ctx.shared = shared
        return x.index_select(0, shared.rows)

    @staticmethod
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor, None]:
        shared: SharedPrefix = ctx.shared
        dx = given.index_select(0, shared.kept)
        dx[: shared.copies.shape[1]] = given[shared.copies].sum(0)
        return dx, None


class _TakeBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shared: SharedPrefix) -> Tensor:
        ctx.shared = shared
        return x.index_select(0, shared.kept)

    @staticmethod
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor, None]:
        shared: SharedPrefix = ctx.shared
        dx = given.new_zeros(len(shared.rows), *given.shape[1:])
        return dx.index_copy_(0, shared.kept, given), None
