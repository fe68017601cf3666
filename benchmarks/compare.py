"""Two result documents row by row: what moved by more than the noise seen in both."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.documents import parse
from benchmarks.harness import Row, aligned, more_is_better, number, quantiles
from benchmarks.steps import OURS

BETTER, WORSE, MOVED = "better", "worse", "moved"  # beyond the noise
MOVES = WORSE, BETTER, MOVED
STEADY, UNJUDGED = "within the noise", "not judged"
GONE, NEW = "before only", "after only"
FEW = 5  # peers; fewer say little of a case
FAR = 1.5  # times; what was measured once and is so far apart is told, though not judged
VERDICTS = (WORSE, BETTER, MOVED, STEADY, UNJUDGED, GONE, NEW)


@dataclass(frozen=True)
class Change:
    """One quantity in two documents. before, after: None, or a row without numbers, where there are none."""

    before: Row | None
    after: Row | None
    verdict: str

    @property
    def row(self) -> Row:
        """The one that has numbers, to name the quantity by."""
        found = self.before if self.verdict == GONE else self.after
        assert found is not None
        return found

    @property
    def factor(self) -> float | None:
        """Median after by median before; None where there is none."""
        if self.before is None or self.after is None or not self.before.median or self.after.median is None:
            return None
        return self.after.median / self.before.median

    @property
    def size(self) -> float:
        """Of how many times as much or as little, whichever is more than 1; infinite from or to 0."""
        return max(self.factor, 1 / self.factor) if self.factor and self.factor > 0 else float("inf")


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Every row of either, those with the same case, shape, contender, metric and unit together.

    A row has moved when its intervals from p20 to p80 do not overlap: of either run's repeated measurements
    four in five lie on its own side of a value between the two. That is what the noise within each run
    allows to be said. Between the runs the machine moves, too: peers show by how much, as their code is the
    same in both, and a row has not moved by less than four in five peers of its case have. A row of a single
    measurement says nothing of its noise and is not judged, however far apart the two are. Whether more is
    better is the unit's: of rates and shares it is, of times, memory and errors less is, and of counts
    neither. Fractions of the limit are not compared: the limit is another one on another day or machine.

    Those that moved come first, the largest first. Rows that are absent in both are left out. OwlError when
    one is no result document.
    """
    old, new = _keyed(parse(before, "before").rows), _keyed(parse(after, "after").rows)
    changes = []
    for key in {**old, **new}:
        one, other = old.get(key), new.get(key)
        if (one and one.median is not None) or (other and other.median is not None):
            changes.append(Change(one, other, _verdict(one, other)))
    drift = _drift(changes)
    changes = [
        replace(c, verdict=STEADY) if c.verdict in MOVES and c.size <= drift(c.row.case) else c
        for c in changes
    ]
    return sorted(
        changes, key=lambda c: (0, -c.size) if c.verdict in MOVES else (VERDICTS.index(c.verdict), 0)
    )


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What else than the code differs between two documents, one sentence each."""
    said = []
    for part, what in (("device", "device"), ("versions", "version of")):
        old, new = before[part], after[part]
        said += [
            f"{what} {key}: {old.get(key, 'none')} before, {new.get(key, 'none')} after"
            for key in {**old, **new}
            if old.get(key) != new.get(key)
        ]
    return said


def _drift(changes: Sequence[Change]) -> Callable[[str], float]:
    """case -> how many times as much or as little four in five of its peers became; of all peers where it has
    few, and 1 where there are none."""
    sizes: dict[str, list[float]] = defaultdict(list)
    for change in changes:
        if change.verdict in (*MOVES, STEADY) and not change.row.contender.startswith(OURS):
            sizes[change.row.case].append(change.size)
    every = [size for of_case in sizes.values() for size in of_case]
    enough = {case: of_case for case, of_case in sizes.items() if len(of_case) >= FEW}
    return lambda case: quantiles(enough.get(case, every))[2] if every else 1.0


def counts(changes: Sequence[Change]) -> dict[str, int]:
    """How many of each verdict that there is."""
    found = Counter(change.verdict for change in changes)
    return {verdict: found[verdict] for verdict in VERDICTS if found[verdict]}


def table(before: Mapping[str, Any], after: Mapping[str, Any], changes: Sequence[Change]) -> str:
    """As text: what else differs, how many rows did what, which of them moved, are far apart, or in one
    alone."""
    told = [f"differs: {said}" for said in differences(before, after)]
    told.append(", ".join(f"{count} {verdict}" for verdict, count in counts(changes).items()) or "no rows")
    lines = [("", "case", "shape", "contender", "metric", "before", "after", "unit", "times")]
    for change in changes:
        if change.verdict == STEADY or (change.verdict == UNJUDGED and change.size < FAR):
            continue
        r, times = change.row, "" if change.factor is None else f"{change.factor:.2f}"
        numbers = _interval(change.before), _interval(change.after)
        lines.append((change.verdict, r.case, r.shape, r.contender, r.metric, *numbers, r.unit, times))
    return "\n".join([*told, aligned(lines)] if len(lines) > 1 else told)


def _keyed(rows: Sequence[Row]) -> dict[tuple[tuple[str, ...], int], Row]:
    """Rows by what they measure; one that stands there again, by which time it is."""
    seen: Counter[tuple[str, ...]] = Counter()
    found: dict[tuple[tuple[str, ...], int], Row] = {}
    for r in rows:
        key = r.case, r.shape, r.contender, r.metric, r.unit
        found[key, seen[key]] = r
        seen[key] += 1
    return found


def _verdict(before: Row | None, after: Row | None) -> str:
    if after is None or after.median is None:
        return GONE
    if before is None or before.median is None:
        return NEW
    if _single(before) or _single(after):
        return UNJUDGED
    (low, high), (new_low, new_high) = _bounds(before), _bounds(after)
    if new_low <= high and low <= new_high:
        return STEADY
    better = more_is_better(after.unit)
    if better is None:
        return MOVED
    return BETTER if (new_low > high) == better else WORSE


def _single(r: Row) -> bool:
    return None in (r.p20, r.p80) or r.p20 == r.median == r.p80


def _bounds(r: Row) -> tuple[float, float]:
    assert r.p20 is not None
    assert r.p80 is not None
    return r.p20, r.p80


def _interval(r: Row | None) -> str:
    if r is None or r.median is None:
        return ""
    return number(r.median) if _single(r) else f"{number(r.median)} ({number(r.p20)} to {number(r.p80)})"
