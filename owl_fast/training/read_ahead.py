"""Reader processes: the next updates are read while this one trains.

Each reads every n-th update and holds the next one ready in a pipe of its own. Batches come by value, not
through shared memory, of which containers have little. A reader that dies, even within a message, closes its
pipe; that is noticed where its update is waited for, never in the middle of something else.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
from collections.abc import Generator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

from owl_fast.errors import OwlError, ReaderError
from owl_fast.training.packing import TrainingBatch
from owl_fast.training.stopping import SIGNALS
from owl_fast.training.updates import UpdateReader

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def read_updates(
    reader: UpdateReader, steps: Sequence[int], workers: int, timeout: float
) -> Generator[list[TrainingBatch], None, None]:
    """Micro-batches of each step in order, the same for any number of workers; with 0 this process reads.

    timeout: seconds to wait for one update. ReaderError when a worker dies, or does not deliver in that time.
    Close the iterator: no worker outlives it.
    """
    if not workers:
        yield from map(reader, steps)
        return
    processes: list[_Worker] = []
    try:
        for number in range(min(workers, len(steps))):
            processes.append(_Worker(reader, steps[number::workers]))
        for number in range(len(steps)):
            found = processes[number % workers].receive(timeout)
            if isinstance(found, OwlError):
                raise found
            yield found
    finally:
        for process in processes:
            process.end()


class _Worker:
    """A process that reads these steps, one after the other."""

    def __init__(self, reader: UpdateReader, steps: Sequence[int]) -> None:
        self._results, sending = multiprocessing.Pipe(duplex=False)
        # Forked, so that sources may be closures, which cannot be pickled.
        self._process = multiprocessing.get_context("fork").Process(
            target=_work, args=(reader, steps, sending, os.getpid())
        )
        self._process.start()
        sending.close()  # the worker alone holds it: when it dies the pipe ends

    def receive(self, timeout: float) -> Any:
        try:
            if self._results.poll(timeout):
                return pickle.loads(self._results.recv_bytes())
        except (EOFError, OSError):  # before a message, and within one
            raise ReaderError(self._death()) from None
        raise ReaderError(
            f"a reader process has not delivered its update for {timeout:.0f} s: its files, or what decodes "
            "them, hang; mend that, or allow more time, and start again"
        )

    def end(self) -> None:
        """At once: it holds nothing that would be lost."""
        self._process.kill()
        self._process.join()
        self._results.close()

    def _death(self) -> str:
        self._process.join(5)
        code = self._process.exitcode
        how = f"ended itself with code {code}; what it printed may say why"
        if code is not None and code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            how += ", often the system's answer to too little memory: fewer workers need less"
        return (
            f"a reader process (pid {self._process.pid}) {how}; start again, the run goes on from its newest "
            "snapshot"
        )


def _work(reader: UpdateReader, steps: Sequence[int], results: Connection, parent: int) -> None:
    """Leave signals to the process it reads for, die with it, and send it batches, or what it shall raise."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return  # it died before it could be asked for that
    torch.set_num_threads(1)
    for step in steps:
        try:
            found: list[TrainingBatch] | OwlError = reader(step)
        except OwlError as error:
            found = error
        results.send_bytes(pickle.dumps(found))
