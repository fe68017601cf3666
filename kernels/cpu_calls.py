"""Calls of libowl_cpu: its numbers for dtypes, and steps that are recorded and made again as they were.

Work over fixed tensors then costs Python next to nothing for an operation: where each one reads megabytes of
weights, which drive Python's own memory out of every cache, the arguments of a call take longer to put
together than to use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

TYPES = {torch.float32: 0, torch.bfloat16: 1}  # OWL_F32, OWL_BF16
Function = Callable[..., None]  # of a pool's handle, and of arguments that are valid while they are kept


class Call(NamedTuple):
    function: Function
    args: tuple[Any, ...]
    kept: object  # what args point into


_recording: ContextVar[list[Call] | None] = ContextVar("_recording", default=None)


def call(function: Function, pool: int | None, *args: Any, keep: object) -> None:
    """function(pool, *args). keep: all tensors whose addresses are among the arguments."""
    function(pool, *args)
    calls = _recording.get()
    if calls is not None:
        calls.append(Call(function, args, keep))


@contextmanager
def recording() -> Iterator[list[Call]]:
    """The calls of this block, in order. What torch computes there is not recorded, and no error says so."""
    calls: list[Call] = []
    token = _recording.set(calls)
    try:
        yield calls
    finally:
        _recording.reset(token)


def recorded(work: Callable[[], Tensor], pool: Callable[[], int | None]) -> Callable[[], Tensor]:
    """work, whose recorded calls are made again by each call of the result; the same tensor comes back."""
    with recording() as calls:
        result = work()

    def again() -> Tensor:
        handle = pool()
        for function, args, _ in calls:
            function(handle, *args)
        return result

    return again
