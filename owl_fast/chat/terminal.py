"""The terminal's own state: kept, quietened while the model speaks, and given back however the chat ends."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
from collections.abc import Iterator
from types import FrameType
from typing import Any

# Plain writing, cursor shown, pastes unmarked.
RESET = "\x1b[0m\x1b[?25h\x1b[?2004l"


def is_dumb() -> bool:
    """A terminal that obeys no escape sequences, or an output that is none."""
    return not sys.stdout.isatty() or os.environ.get("TERM", "dumb") in ("dumb", "unknown")


@contextlib.contextmanager
def kept_terminal(redrawn: bool) -> Iterator[None]:
    """Give the terminal back as it was, also when the process is asked to end (SIGTERM, SIGHUP).

    redrawn: it may be left with a colour, a hidden cursor or marked pastes, which are then reset.
    """
    attributes = _attributes()
    endings = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, _leave) for number in endings}
    try:
        yield
    finally:
        # One more Ctrl-C now would leave the terminal half restored.
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        _restore(attributes, RESET if redrawn else "")
        for number, handler in {**before, signal.SIGINT: interrupt}.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def quiet_keys() -> Iterator[None]:
    """Keys are not echoed, and forgotten at the end: what is typed or pasted while the model speaks would
    otherwise be read line by line as if it had been sent. Ctrl-C works on."""
    attributes = _attributes()
    if attributes is None:
        yield
        return
    quiet = list(attributes)
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, quiet)
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):
            termios.tcsetattr(sys.stdin, termios.TCSAFLUSH, attributes)


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _attributes() -> list[Any] | None:
    """The terminal's attributes; None when stdin is none."""
    if not sys.stdin.isatty():
        return None
    try:
        return termios.tcgetattr(sys.stdin)
    except (termios.error, OSError, ValueError):
        return None


def _restore(attributes: list[Any] | None, sequences: str) -> None:
    if attributes is None:
        return
    with contextlib.suppress(termios.error, OSError):
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, attributes)
    with contextlib.suppress(OSError):
        sys.stdout.write(sequences)
        sys.stdout.flush()
