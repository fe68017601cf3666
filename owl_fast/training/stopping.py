"""Being asked to stop: a signal sets a flag, the loop looks at it where stopping is safe."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequested(BaseException):
    """Unwinds to the end of Trainer.run, which saves; no Exception, so that nothing on the way catches it."""


class Stop:
    """Whether a run was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._waiting = False

    @classmethod
    @contextmanager
    def on_signals(cls) -> Iterator[Stop]:
        """One that SIGTERM and SIGINT set; a second signal ends the process at once.

        The handlers that were there before are put back in the end. Python leaves signals to the main
        thread: in another one nothing is changed, and whoever runs it (Ray) stops it in its own way.
        """
        stop = cls()
        if threading.current_thread() is not threading.main_thread():
            yield stop
            return
        before = {number: signal.signal(number, stop._receive) for number in SIGNALS}
        try:
            yield stop
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Raise StopRequested if the run was asked to stop; a long evaluation may call it now and then."""
        if self.signal is not None:
            raise StopRequested

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A block that a signal leaves at once: one that waits and changes nothing."""
        self._waiting = True
        try:
            self.check()
            yield
        finally:
            self._waiting = False

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if self._waiting:
            raise StopRequested
