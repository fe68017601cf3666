"""One process at a time works in a run folder."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
import weakref
from contextlib import suppress
from pathlib import Path

from owl_fast.errors import LockedError

LOCK = "run.lock"
PATIENCE = 1.0  # seconds: readers of a process that was killed hold its lock until they are gone, too

logger = logging.getLogger(__name__)


class RunLock:
    """Held from the constructor until release() or the death of the process, however it comes.

    LockedError when another process holds it: the kernel's lock (flock) counts, not the file.
    """

    def __init__(self, folder: Path) -> None:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _acquire(descriptor, folder)
            with suppress(OSError):  # on a full disk: the name is only for those who come later
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._end = weakref.finalize(self, _release, descriptor)

    def release(self) -> None:
        self._end()


def _acquire(descriptor: int, folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
                raise LockedError(
                    f"{folder}: {holder} trains there; wait for it, stop it, or give another folder"
                ) from None
            time.sleep(0.05)
        except OSError as error:
            logger.warning(
                "%s: its file system knows no locks (%s); take care that one process alone trains there",
                folder,
                error.strerror,
            )
            return


def _release(descriptor: int) -> None:
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # also for forked copies of the descriptor
    os.close(descriptor)
