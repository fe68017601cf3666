"""Numbers as a reader takes them: as many digits as the noise carries, units that fit."""

from __future__ import annotations

import math

from benchmarks.harness import Row

SPACE, MINUS = "\u202f", "−"  # between thousands and before units; of negative numbers
SMALL = 6  # digits behind the point: what needs more is written with a power of ten
SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
FITTING = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))


def numbers(row: Row) -> tuple[str, str, str]:
    """p20, median and p80, all to the same digit."""
    places = decimals(row)
    p20, median, p80 = (fixed(value, places) for value in (row.p20, row.median, row.p80))
    return p20, median, p80


def decimals(row: Row) -> int:
    """Digits behind the point, negative before it: to a tenth of what lies between p20 and p80, or three
    digits that count of what was measured once; two of them at the least and four at the most."""
    if not row.median:
        return 0
    first = math.floor(math.log10(abs(row.median)))
    spread = (row.p80 or 0.0) - (row.p20 or 0.0)
    if spread <= 0:
        return 0 if float(row.median).is_integer() and first < 4 else 2 - first
    return min(max(-math.floor(math.log10(spread / 10)), 1 - first), 3 - first)


def fixed(value: float | None, places: int) -> str:
    if value is None:
        return "–"
    if places > SMALL:
        digits = places + math.floor(math.log10(abs(value) or 1.0))
        return f"{value:.{min(max(digits, 0), 3)}e}".replace("-", MINUS)
    text = f"{round(value, places):,.{max(places, 0)}f}"
    return text.replace(",", SPACE).replace("-", MINUS)


def quantity(row: Row) -> str:
    """The median with its unit; times in the unit that fits."""
    value, unit, places = row.median, row.unit, decimals(row)
    if value is None:
        return "–"
    if row.unit in SECONDS:
        seconds = value * SECONDS[row.unit]
        unit, size = next(((name, size) for name, size in FITTING if seconds >= size), FITTING[-1])
        places += round(math.log10(size / SECONDS[row.unit]))
        value = seconds / size
    return f"{fixed(value, places)}{SPACE}{unit}"


def interval(row: Row | None) -> str:
    """Median with unit and, where it was measured more than once, p20 to p80."""
    if row is None or row.median is None:
        return "–"
    p20, _, p80 = numbers(row)
    return quantity(row) if row.p20 == row.p80 else f"{quantity(row)} ({p20} to {p80})"


def percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.{0 if fraction >= 0.1 else 1}f}{SPACE}%"


def times(factor: float | None) -> str:
    """1.43 ×, 12 ×"""
    return "" if factor is None else f"{fixed(factor, 2 if factor < 10 else 0)}{SPACE}×"
