"""Reader processes: the next micro-batches are read while this one trains.

Each reads every n-th of them and has up to AHEAD ready. A reader that dies closes its socket; that is
noticed where its batch is waited for, never in the middle of something else.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
from collections.abc import Generator, Sequence
from typing import Any

import torch

from owl_fast.errors import OwlError, ReaderError
from owl_fast.training.handover import Gone, receive, send
from owl_fast.training.packing import TrainingBatch
from owl_fast.training.stopping import SIGNALS
from owl_fast.training.updates import UpdateReader

AHEAD = 4  # micro-batches
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def read_batches(
    reader: UpdateReader, numbers: Sequence[int], workers: int, timeout: float
) -> Generator[TrainingBatch, None, None]:
    """The micro-batches of these numbers, the same for any number of workers; with 0 this process reads.

    timeout: seconds to wait for one. ReaderError when a worker dies, or does not deliver in that time.
    Close the iterator: no worker outlives it.
    """
    if not workers:
        yield from map(reader, numbers)
        return
    processes: list[_Worker] = []
    try:
        for first in range(min(workers, len(numbers))):
            processes.append(_Worker(reader, numbers[first::workers]))
        for place in range(len(numbers)):
            found = processes[place % workers].receive(timeout)
            if isinstance(found, OwlError):
                raise found
            yield found
    finally:
        for process in processes:
            process.end()


class _Worker:
    """A process that reads these micro-batches, one after the other."""

    def __init__(self, reader: UpdateReader, numbers: Sequence[int]) -> None:
        self._channel, far = socket.socketpair()
        # Forked, so that sources may be closures, which cannot be pickled.
        self._process = multiprocessing.get_context("fork").Process(
            target=_work, args=(reader, numbers, far, os.getpid())
        )
        self._process.start()
        far.close()  # the worker alone holds it: its death closes it

    def receive(self, timeout: float) -> Any:
        """Its next micro-batch, or the error it met."""
        try:
            if multiprocessing.connection.wait([self._channel], timeout):
                found = receive(self._channel)
                self._channel.send(b".", socket.MSG_NOSIGNAL)  # there is room for another one
                return found
        except (Gone, ConnectionError):
            raise ReaderError(self._death()) from None
        raise ReaderError(
            f"a reader process has not delivered its batch for {timeout:.0f} s: its files, or what decodes "
            "them, hang; mend that, or allow more time, and start again"
        )

    def end(self) -> None:
        """At once: it holds nothing that would be lost."""
        self._process.kill()
        self._process.join()
        self._channel.close()

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


def _work(reader: UpdateReader, numbers: Sequence[int], channel: socket.socket, parent: int) -> None:
    """Leave signals to the process it reads for, die with it, and send it batches, or what it shall raise."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return  # it died before it could be asked for that
    torch.set_num_threads(1)
    for place, number in enumerate(numbers):
        if place >= AHEAD:
            channel.recv(1)  # one has been taken
        try:
            found: TrainingBatch | OwlError = reader(number)
        except OwlError as error:
            found = error
        send(channel, found)
    for _ in numbers[-AHEAD:]:
        channel.recv(1)  # who leaves what was not taken ends as if it had died
