"""Waiting for what other threads and processes do."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE = 60.0


def until(condition: Callable[[], bool], seconds: float = PATIENCE, every: float = 0.01) -> None:
    """Wait until it holds; AssertionError when it does not in time. every: seconds between looks."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(every)
