"""Rows as tables: every row of a figure, and a grid of medians for what has no figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.report.entries import Entry, grouped
from benchmarks.report.formats import decimals, fixed

LONG = 60  # rows from which on a table is folded


@dataclass(frozen=True)
class Grid:
    """Medians by what was measured (columns) and where (rows). words: how many of the columns are words."""

    title: str
    head: Sequence[str]
    words: int
    lines: Sequence[Sequence[str]]

    @property
    def is_long(self) -> bool:
        return len(self.lines) > LONG


def grids(entries: Sequence[Entry]) -> list[Grid]:
    """One for each machine and case; words that are the same in all of its lines stand in its title."""
    measured = [entry for entry in entries if entry.row.median is not None]
    found = []
    for (machine, case), same in grouped(measured, lambda e: (e.machine, e.row.case)).items():
        columns = list(dict.fromkeys((e.row.metric, e.row.unit) for e in same))
        places = grouped(same, lambda e: (e.row.shape, e.row.contender))
        varied = [i for i in (0, 1) if len({place[i] for place in places}) > 1]
        lines = []
        for place, of_it in places.items():
            cells = {(e.row.metric, e.row.unit): fixed(e.row.median, decimals(e.row)) for e in of_it}
            lines.append([*(place[i] for i in varied), *(cells.get(column, "") for column in columns)])
        head = [("shape", "contender")[i] for i in varied]
        head += [f"{metric}, {unit}" if unit else metric for metric, unit in columns]
        first = next(iter(places))
        fixed_words = [first[i] for i in (0, 1) if i not in varied and first[i]]
        title = ", ".join([machine, case, *fixed_words])
        found.append(Grid(title, head, len(varied), lines))
    return found
