"""Contenders that make steps, such as tokens of an answer: measured in turns, or one after the other.

What a step yields is what was measured of it: seconds, or several numbers of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from functools import partial
from typing import TypeAlias, TypeVar

import torch

from benchmarks.timing import attempt, release

T = TypeVar("T")
StepsOf: TypeAlias = Generator[T, None, None]
StartOf: TypeAlias = Callable[[], StepsOf[T]] | str  # a contender's steps, or why it takes no part
TakenOf: TypeAlias = dict[str, list[T] | str]  # what was measured of each step, or why there are none
Steps: TypeAlias = StepsOf[float]  # seconds
Start: TypeAlias = StartOf[float]
OURS = "owl_fast"  # must run; a peer may fail


def in_turns(starts: Mapping[str, StartOf[T]], pause: float = 0.0) -> TakenOf[T]:
    """Round by round one step of each, `pause` seconds after the last; the first of each does not count."""
    running, failed = begin(starts)
    measured: dict[str, list[T]] = {name: [] for name in running}
    for found in zip(*(_paused(pause, steps) for steps in running.values()), strict=False):
        for name, value in zip(running, found, strict=True):
            measured[name].append(value)
    end(running)
    taken: TakenOf[T] = {**failed, **measured}
    return {name: taken[name] for name in starts}


def _paused(pause: float, steps: StepsOf[T]) -> StepsOf[T]:
    while True:
        time.sleep(pause)
        measured = next(steps, None)
        if measured is None:
            return
        yield measured


def begin(starts: Mapping[str, StartOf[T]]) -> tuple[dict[str, StepsOf[T]], dict[str, str]]:
    """Those whose first step is done, and why the others take no part."""
    running: dict[str, StepsOf[T]] = {}
    failed: dict[str, str] = {}
    for name, start in starts.items():
        if isinstance(start, str):
            failed[name] = start
            continue
        steps = start()
        first = next(steps) if name == OURS else attempt(partial(next, steps))
        if isinstance(first, str):
            failed[name] = first
        else:
            running[name] = steps
    return running, failed


def end(running: Mapping[str, StepsOf[T]]) -> None:
    """They give back what they hold."""
    for steps in running.values():
        steps.close()


def alone(starts: Mapping[str, StartOf[T]], device: torch.device) -> TakenOf[T]:
    """All steps of one contender after those of the other, each with the memory to itself."""
    taken: TakenOf[T] = {}
    for name, start in starts.items():
        if isinstance(start, str):
            taken[name] = start
        else:
            release(device)
            run = partial(_all, start)
            taken[name] = run() if name == OURS else attempt(run)
    return taken


def _all(start: Callable[[], StepsOf[T]]) -> list[T]:
    return list(start())
