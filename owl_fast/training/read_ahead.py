"""Reader processes: the next updates are read while this one trains.

They are forked, so that sources may be closures, and ignore the signals meant for the run. Batches come back
by value, not through shared memory, of which containers have little. A reader that dies or hangs is noticed
where its update is waited for, never in the middle of something else.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.process
import pickle
import signal
import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool

import torch

from owl_fast.errors import OwlError, ReaderError
from owl_fast.training.packing import TrainingBatch
from owl_fast.training.stopping import SIGNALS
from owl_fast.training.updates import UpdateReader

AHEAD = 2  # updates per reader process that are read or wait
PR_SET_PDEATHSIG = 1  # linux/prctl.h

_reader: UpdateReader  # in a reader process


def read_updates(
    reader: UpdateReader, steps: Sequence[int], workers: int, timeout: float
) -> Generator[list[TrainingBatch], None, None]:
    """Micro-batches of each step in order, the same for any number of workers; with 0 this process reads.

    timeout: seconds to wait for one update. ReaderError when a worker dies, or none comes in that time.
    Close the iterator: no worker outlives it.
    """
    if not workers:
        yield from map(reader, steps)
        return
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("fork"), initializer=_begin, initargs=(reader,)
    )
    processes: set[multiprocessing.process.BaseProcess] = set()
    waiting: deque[Future[bytes]] = deque()
    left = iter(steps)
    try:
        for _ in steps:
            try:
                while len(waiting) < AHEAD * workers and (step := next(left, None)) is not None:
                    waiting.append(pool.submit(_read, step))
                    processes = set(multiprocessing.active_children()) - others
                found = pickle.loads(waiting.popleft().result(timeout))
            except FutureTimeoutError:
                raise ReaderError(
                    f"no reader process delivered the next update in {timeout:.0f} s: its files, or what "
                    "decodes them, hang; mend that, or allow more time, and start again"
                ) from None
            except BrokenProcessPool:
                raise ReaderError(_death(processes)) from None
            if isinstance(found, OwlError):
                raise found
            yield found
    finally:
        _end(processes)
        pool.shutdown(cancel_futures=True)


def _begin(reader: UpdateReader) -> None:
    """A reader process leaves signals to the process it reads for, and dies with it."""
    global _reader
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    torch.set_num_threads(1)
    _reader = reader


def _read(step: int) -> bytes:
    """The pickled micro-batches, or the error, whose traceback would bury the message."""
    try:
        return pickle.dumps(_reader(step))
    except OwlError as error:
        return pickle.dumps(error)


def _end(processes: Iterable[multiprocessing.process.BaseProcess]) -> None:
    """At once: they hold nothing that would be lost."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


def _death(processes: Iterable[multiprocessing.process.BaseProcess]) -> str:
    """Which one died, and how; the pool has ended the others."""
    deadline, dead = time.monotonic() + 1, None
    while dead is None and time.monotonic() < deadline:
        dead = next((p for p in processes if p.exitcode not in (None, 0, -signal.SIGTERM)), None)
    how = "died"
    if dead is not None and dead.exitcode is not None:
        code = dead.exitcode
        how = f"(pid {dead.pid}) " + (
            f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended itself with code {code}"
        )
        if code == -signal.SIGKILL:
            how += ", often the system's answer to too little memory: fewer workers need less"
    return f"a reader process {how}; start again, the run goes on from its newest snapshot"
