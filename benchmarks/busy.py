"""A process that computes and does nothing else, to measure beside: python busy.py PARENT SECONDS.

It ends with its parent, whatever becomes of that, and at the latest after SECONDS.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from types import TracebackType

SECONDS = 1200
_PR_SET_PDEATHSIG = 1


class BusyProcess:
    """One for the length of the block, on one core; at first it is paused."""

    def __enter__(self) -> BusyProcess:
        command = [sys.executable, __file__, str(os.getpid()), str(SECONDS)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self._process.stdout.readline()  # from here on it ends with this process
        self.pause()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def pause(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)


def compute(parent: int, seconds: float) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    print("ready", flush=True)
    end = time.monotonic() + seconds
    while os.getppid() == parent and time.monotonic() < end:
        sum(range(1_000_000))


if __name__ == "__main__":
    compute(int(sys.argv[1]), float(sys.argv[2]))
