"""Selective activation checkpointing: which results of a layer are kept, while the rest is computed again.

torch.utils.checkpoint runs a layer a second time in backward; here results that cost much survive in between.
An operation with a gradient wraps what its forward computes in kept(kind, compute): in a layer that keeps the
kind, the second pass takes what the first one made, and has its bits. models/recompute.py chooses the kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextvars import ContextVar
from types import TracebackType
from typing import Literal

from torch import Tensor

Kind = Literal["linear", "attention"]
Tensors = tuple[Tensor, ...]


class Kept:
    """Results of the wanted kinds, in the order in which one layer made them."""

    def __init__(self, kinds: Iterable[Kind]) -> None:
        self.kinds = frozenset(kinds)
        self._results: list[Tensors] = []
        self._next = 0

    def passes(self) -> tuple[_Pass, _Pass]:
        """The context of the first pass, and of every further one."""
        return _Pass(self, again=False), _Pass(self, again=True)

    def start(self) -> None:
        self._next = 0

    def make(self, compute: Callable[[], Tensors]) -> Tensors:
        made = compute()
        # Detached: what autograd hangs on tensors that leave would hold this object, which would hold them.
        self._results.append(tuple(x.detach() for x in made))
        return made

    def take(self) -> Tensors:
        self._next += 1
        return tuple(x.detach() for x in self._results[self._next - 1])


class _Pass:
    """One run of the layer."""

    def __init__(self, kept: Kept, again: bool) -> None:
        self.kept, self.again = kept, again

    def __enter__(self) -> None:
        self.kept.start()
        self._token = _here.set(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _here.reset(self._token)


_here: ContextVar[_Pass | None] = ContextVar("_here", default=None)


def kept(kind: Kind, compute: Callable[[], Tensors]) -> Tensors:
    """compute(), or in a second pass what it gave in the first. Nobody may change the tensors in place."""
    here = _here.get()
    if here is None or kind not in here.kept.kinds:
        return compute()
    return here.kept.take() if here.again else here.kept.make(compute)
