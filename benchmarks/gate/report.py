"""What was found beside what should be: lines, their table, and the exit code."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from benchmarks.gate import counts, ratios
from benchmarks.gate.table import COUNTS, LEAST, WITHIN
from benchmarks.harness import quantiles

TABLE = "benchmarks/gate/table.py"


@dataclass(frozen=True)
class Line:
    """advice: what to do; of what fails."""

    what: str
    found: str
    bound: str
    verdict: str = "ok"
    advice: str = ""

    @property
    def fails(self) -> bool:
        return self.verdict != "ok"


def run() -> int:
    """Prints everything; 1 when a line fails."""
    lines = missing(COUNTS, counts.WORK)
    everything = {**counts.WORK, **ratios.RATIOS}
    bar = tqdm(everything, desc="gate", leave=False, disable=None)
    for name in bar:
        lines += of_work(name, counts.WORK[name]) if name in counts.WORK else [of_ratio(name)]
    print(table(lines))
    failed = [line for line in lines if line.fails]
    advice = list(dict.fromkeys(line.advice for line in failed if line.advice))
    print(f"gate: {len(lines) - len(failed)} of {len(lines)} hold")
    if advice:
        print("", *advice, sep="\n", file=sys.stderr)
    return 1 if failed else 0


def of_work(name: str, work: counts.Work) -> list[Line]:
    if (reason := counts.ABSENT[work.needs]()) is not None:
        return [Line(name, "", "", f"absent: {reason}")]
    return compared(name, work.count(), COUNTS.get(name, {}))


def of_ratio(name: str) -> Line:
    if (reason := counts.ABSENT["libowl_cpu"]()) is not None:
        return Line(name, "", "", f"absent: {reason}")
    return held(name, ratios.measured(name), LEAST[name])


def compared(name: str, found: Mapping[str, int], wanted: Mapping[str, int]) -> list[Line]:
    """One line for everything that was counted of a piece of work, or should have been."""
    advice = f"If this is meant, and not a mistake, put it into {TABLE}:\n{pasted(name, found)}"
    lines = []
    for what in {**wanted, **found}:
        got, should = found.get(what), wanted.get(what)
        line = f"{name}: {what}", _number(got), _bound(what, should)
        if got is None or should is None:
            known = "not in the table" if should is None else "not counted any more"
            lines.append(Line(*line, known, advice))
        elif abs(got - should) > WITHIN[what] * should:
            lines.append(Line(*line, "more than before" if got > should else "less than before", advice))
        else:
            lines.append(Line(*line))
    return lines


def missing(wanted: Mapping[str, object], work: Mapping[str, object]) -> list[Line]:
    """Work of the table that nobody does."""
    advice = f"Take out of {TABLE} what is not counted any more."
    return [Line(name, "", "", "not counted any more", advice) for name in wanted if name not in work]


def held(name: str, values: Sequence[float], least: float) -> Line:
    """The median counts."""
    p20, median, p80 = quantiles(values)
    found = f"{statistics.median(values):.2f} x ({p20:.2f} to {p80:.2f})"
    return Line(name, found, f">= {least:g} x", "ok" if median >= least else "slower than it must be")


def pasted(name: str, found: Mapping[str, int]) -> str:
    """As the table has it."""
    inner = "".join(f'        "{what}": {value:_},\n' for what, value in found.items())
    return f'    "{name}": {{\n{inner}    }},'


def table(lines: Sequence[Line]) -> str:
    cells = [("what", "found", "bound", "verdict")]
    cells += [(line.what, line.found, line.bound, line.verdict) for line in lines]
    widths = [max(len(row[i]) for row in cells) for i in range(4)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _bound(what: str, value: int | None) -> str:
    within = WITHIN[what]
    return _number(value) + (f" +- {within:.0%}" if value and within else "")
