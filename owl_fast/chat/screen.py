"""What is shown: answers on stdout, everything else on stderr. Everything passes through text.safe.

Screen writes plain lines and is all a single answer needs; ColourScreen (colour.py) redraws.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence

from owl_fast.chat.text import safe
from owl_fast.command_line import progress_bar
from owl_fast.errors import OwlError


class Screen:
    """bar: whether loading may draw a bar (on a terminal)."""

    def __init__(self, bar: bool = False) -> None:
        self._bar = bar and sys.stderr.isatty()

    def answer(self, text: str) -> None:
        """A piece of the model's text."""
        print(safe(text), end="", flush=True)

    def end_answer(self) -> None:
        """Close the answer's last line; an answer that said nothing is an empty line."""
        print(flush=True)

    def note(self, text: str) -> None:
        """Something about the conversation, not part of it."""
        print(safe(text), file=sys.stderr, flush=True)

    def summary(self, text: str) -> None:
        """The line under an answer, which ends the turn."""
        self.note(text)

    def error(self, error: OwlError) -> None:
        print(f"error: {safe(str(error))}", file=sys.stderr, flush=True)

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Rows of equal length as columns; the last column may be long."""
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            self.note("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """While the first token is computed."""
        yield

    @contextlib.contextmanager
    def progress(self) -> Iterator[Callable[[int, int], None] | None]:
        """A bar by bytes for loading: call it with (bytes done, bytes in all). None: nobody looks."""
        if not self._bar:
            yield None
            return
        with progress_bar(True, desc="loading", leave=False) as update:
            yield update
