"""Panels of bars: one for each contender, their values in words beside them, the limit across all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.report.entries import Entry, our_limit
from benchmarks.report.formats import SECONDS, percent, quantity, times
from benchmarks.report.styles import Style


@dataclass(frozen=True)
class Bar:
    """width, low, high: of the median, p20 and p80, in percent of the panel."""

    style: Style
    told: str
    aside: str
    width: float
    low: float
    high: float


@dataclass(frozen=True)
class Bars:
    """limit: where it stands, in percent of the panel."""

    bars: Sequence[Bar]
    limit: float | None
    limit_told: str


def bars_of(entries: Sequence[Entry], styles: Mapping[str, Style]) -> Bars:
    """Of one quantity at one shape."""
    limit = our_limit(entries)
    most = max([limit or 0.0, *(entry.row.p80 or entry.median for entry in entries)]) or 1.0
    found = [
        Bar(
            style=styles[row.contender],
            told=quantity(row),
            aside=_aside(entry),
            width=100 * entry.median / most,
            low=100 * (row.p20 if row.p20 is not None else entry.median) / most,
            high=100 * (row.p80 if row.p80 is not None else entry.median) / most,
        )
        for entry in sorted(entries, key=lambda entry: not styles[entry.row.contender].ours)
        for row in [entry.row]
    ]
    if limit is None:
        return Bars(found, None, "")
    return Bars(
        found, 100 * limit / most, quantity(replace(entries[0].row, p20=limit, median=limit, p80=limit))
    )


def _aside(entry: Entry) -> str:
    """Of ours the part of the limit; of others how many times as fast ours is, or as much they take."""
    row = entry.row
    if row.ours is not None:
        fast = row.unit.endswith("/s") or row.unit in SECONDS
        return f"owl_fast {times(row.ours)} as fast" if fast else f"{times(row.ours)} ours"
    return f"{percent(row.limit_fraction)} of the limit" if row.limit_fraction is not None else ""
