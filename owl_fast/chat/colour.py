"""The screen of a conversation in a terminal: dim notes, tables, a spinner."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from owl_fast.chat.screen import Screen
from owl_fast.chat.text import safe
from owl_fast.errors import OwlError


class ColourScreen(Screen):
    def __init__(self) -> None:
        super().__init__(bar=True)
        self._console = Console(stderr=True, highlight=False)

    def note(self, text: str) -> None:
        self._console.print(Text(safe(text), style="dim"))

    def summary(self, text: str) -> None:
        self.note(text)
        self._console.print()

    def error(self, error: OwlError) -> None:
        self._console.print(Text.assemble(("error: ", "bold red"), safe(str(error))))

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        table = Table.grid(padding=(0, 2, 0, 0))
        for index in range(len(rows[0])):
            table.add_column(style="cyan" if index == 0 else "", no_wrap=index == 0)
        for row in rows:
            table.add_row(*(Text(safe(cell)) for cell in row))
        self._console.print(Padding(table, (0, 0, 0, 2)))

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        with self._console.status(Text("reading ...", style="dim"), spinner="dots"):
            yield
        sys.stderr.flush()
