"""Work on all indices of a dataset, chunk by chunk in several processes, results in order."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from owl_fast import machine
from owl_fast.errors import OwlError

CHUNK = 64  # indices that a process is given at a time
AHEAD = 4  # chunks waiting for each process

Result = TypeVar("Result")
_work: Callable[[range], Any]


def over_chunks(
    size: int, work: Callable[[range], Result], workers: int | None = None, chunk: int = CHUNK
) -> Iterator[tuple[int, Result]]:
    """(number of indices, work(indices)) of one range of `chunk` after another up to `size`.

    workers: processes, one per core by default; 0 for this one alone. OwlError when one of them dies.
    """
    chunks = (range(start, min(start + chunk, size)) for start in range(0, size, chunk))
    workers = machine.cpu_count() if workers is None else workers
    if workers == 0 or size <= chunk:
        yield from ((len(indices), work(indices)) for indices in chunks)
        return
    # Forked: what they work on is often a closure, and may be large.
    fork = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(workers, fork, initializer=_begin, initargs=(work,))
    waiting: deque[tuple[int, Future[Result]]] = deque()
    try:
        for indices in chunks:
            waiting.append((len(indices), pool.submit(_run, indices)))
            if len(waiting) > AHEAD * workers:
                yield _taken(*waiting.popleft())
        while waiting:
            yield _taken(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _taken(size: int, future: Future[Result]) -> tuple[int, Result]:
    try:
        return size, future.result()
    except BrokenProcessPool:
        raise OwlError(
            "a process that read data was killed; is there enough memory? Fewer of them take less: --workers"
        ) from None


def _begin(work: Callable[[range], Any]) -> None:
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is answered by the process that started this one


def _run(indices: range) -> Any:
    return _work(indices)
