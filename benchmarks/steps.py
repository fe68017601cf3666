"""Contenders that make steps, such as tokens of an answer: measured in turns, or one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from functools import partial

import torch

from benchmarks.timing import attempt, release

Steps = Generator[float, None, None]  # the seconds of each
Start = Callable[[], Steps] | str  # a contender's steps, or why it takes no part
Taken = dict[str, list[float] | str]  # seconds, or why there are none
OURS = "owl_fast"  # must run; a peer may fail


def in_turns(starts: Mapping[str, Start], pause: float = 0.0) -> Taken:
    """Round by round one step of each, `pause` seconds after the last; the first of each does not count."""
    running, failed = begin(starts)
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for found in zip(*(_paused(pause, steps) for steps in running.values()), strict=False):
        for name, value in zip(running, found, strict=True):
            seconds[name].append(value)
    end(running)
    taken: Taken = {**failed, **seconds}
    return {name: taken[name] for name in starts}


def _paused(pause: float, steps: Steps) -> Steps:
    while True:
        time.sleep(pause)
        seconds = next(steps, None)
        if seconds is None:
            return
        yield seconds


def begin(starts: Mapping[str, Start]) -> tuple[dict[str, Steps], dict[str, str]]:
    """Those whose first step is done, and why the others take no part."""
    running: dict[str, Steps] = {}
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


def end(running: Mapping[str, Steps]) -> None:
    """They give back what they hold."""
    for steps in running.values():
        steps.close()


def alone(starts: Mapping[str, Start], device: torch.device) -> Taken:
    """All steps of one contender after those of the other, each with the memory to itself."""
    taken: Taken = {}
    for name, start in starts.items():
        if isinstance(start, str):
            taken[name] = start
        else:
            release(device)
            run = partial(_all, start)
            taken[name] = run() if name == OURS else attempt(run)
    return taken


def _all(start: Callable[[], Steps]) -> list[float]:
    return list(start())
