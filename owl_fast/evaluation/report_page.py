"""A report as one page of HTML that stands alone: style inside, bars as boxes, no script, nothing loaded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from owl_fast.evaluation.owleval import ABILITIES, PICTURES
from owl_fast.evaluation.pages import SHARED, templates
from owl_fast.evaluation.ratings import GRADES, Rating
from owl_fast.evaluation.study import Study


def report_page(report: Mapping[str, Any], study: Study, ratings: Sequence[Rating], texts: bool) -> str:
    """report: what tables.report made, with title and note. texts: whether to show questions and answers."""
    environment = templates(SHARED)
    environment.filters.update(ids=_ids, percent=_percent, plain=_plain)
    grades: dict[tuple[str, int], list[Rating]] = defaultdict(list)
    for rating in sorted(ratings, key=lambda rating: (rating.model is not None, rating.rater)):
        grades[rating.system, rating.question].append(rating)
    return environment.get_template("report.html").render(
        report=report,
        study=study if texts else None,
        ratings=grades,
        grades=GRADES,
        abilities=ABILITIES,
        pictures=PICTURES,
        records={name: list(_flat(of_it["record"] or {})) for name, of_it in report["systems"].items()},
        any_failed=any(of_it["failed"] for of_it in report["systems"].values()),
    )


def _ids(numbers: Sequence[int]) -> str:
    """1–3, 7, 9"""
    runs = [
        [number for _, number in run]
        for _, run in groupby(enumerate(sorted(set(numbers))), lambda place: place[1] - place[0])
    ]
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f}\u202f%" if whole else "–"


def _plain(number: float | None, digits: int = 2) -> str:
    """A minus as a minus, no zeros that say nothing."""
    if number is None:
        return "–"
    return f"{number:.{digits}f}".replace("-", "−")


def _flat(record: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Every value of a record under its dotted name, but hashes of single pictures and what says nothing."""
    for key, value in record.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            if name != "settings.data.pictures":
                yield from _flat(value, f"{name}.")
        elif value not in (None, [], "", False):
            yield name, str(value)
