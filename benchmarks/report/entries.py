"""Rows with the document they stand in: which of them a figure shows, their limits, and what is absent."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.documents import Document
from benchmarks.harness import Row
from benchmarks.steps import OURS

ABSENT = "absent:"
CEILINGS = "load", "kernel-resources"  # cases whose memory must stay below its limit
T = TypeVar("T")
K = TypeVar("K")


@dataclass(frozen=True)
class Entry:
    row: Row
    document: Document

    @property
    def machine(self) -> str:
        return self.document.machine

    @property
    def is_absent(self) -> bool:
        return self.row.note.startswith(ABSENT)

    @property
    def has_limit(self) -> bool:
        return self.row.median is not None and (self.row.limit_fraction or 0.0) > 0

    @property
    def median(self) -> float:
        """Of a row that has one."""
        assert self.row.median is not None
        return self.row.median


@dataclass(frozen=True)
class Absent:
    """rows: how many give this reason, in which numbers that are not the same in all are written …"""

    reason: str
    machine: str
    contenders: tuple[str, ...]
    rows: int


def grouped(found: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """By key, both in the order of their first appearance."""
    groups: dict[K, list[T]] = {}
    for one in found:
        groups.setdefault(key(one), []).append(one)
    return groups


def shown(entries: Sequence[Entry]) -> list[Entry]:
    """Those with numbers; of what was measured in several runs on a machine, the rows of the latest run.

    A run is taken as a whole: ours of one day beside a peer of another says nothing.
    """
    measured = [entry for entry in entries if entry.row.median is not None]
    found: list[Entry] = []
    for same in grouped(
        measured, lambda e: (e.machine, e.row.case, e.row.shape, e.row.metric, e.row.unit)
    ).values():
        of_ours = [entry for entry in same if entry.row.contender == OURS]
        latest = max(of_ours or same, key=lambda entry: entry.document.date).document
        found += [entry for entry in same if entry.document is latest]
    return found


def limit(row: Row) -> float | None:
    """What the machine gives at most, or what it takes at least, in the unit of the row."""
    if row.median is None or row.limit_fraction is None or row.limit_fraction <= 0:
        return None
    most = row.unit.endswith("/s") or row.case in CEILINGS
    return row.median / row.limit_fraction if most else row.median * row.limit_fraction


def our_limit(entries: Iterable[Entry]) -> float | None:
    """The limit that our own row names, else that of one of its variants: which is another one where they
    hold numbers in fewer bits."""
    rows = sorted((entry.row for entry in entries if entry.row.contender.startswith(OURS)), key=_variant)
    return next((found for row in rows if (found := limit(row)) is not None), None)


def absents(entries: Iterable[Entry]) -> list[Absent]:
    """The reasons why rows have no numbers; those that differ in their numbers alone are one."""
    found = []
    reasons = [(entry, entry.row.note.removeprefix(ABSENT).strip()) for entry in entries if entry.is_absent]
    for (machine, plain), same in grouped(reasons, lambda r: (r[0].machine, _plain(r[1]))).items():
        said = {reason for _, reason in same}
        contenders = tuple(dict.fromkeys(entry.row.contender for entry, _ in same))
        found.append(Absent(said.pop() if len(said) == 1 else plain, machine, contenders, len(same)))
    return sorted(found, key=lambda absent: -absent.rows)


def _variant(row: Row) -> bool:
    return row.contender != OURS


def _plain(reason: str) -> str:
    return re.sub(r"\d+(\.\d+)?", "…", reason)
