"""The page: sections with figures, every row below its figure, what is absent and why, and what moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.compare import BETTER, GONE, MOVED, NEW, WORSE, Change, counts, differences
from benchmarks.documents import parse
from benchmarks.harness import write_whole
from benchmarks.report import formats
from benchmarks.report.entries import Absent, Entry, absents, grouped, shown
from benchmarks.report.styles import Style, styles
from benchmarks.report.tables import Grid, grids
from benchmarks.steps import OURS
from owl_fast.errors import UnsupportedError
from owl_fast.evaluation.pages import templates

if TYPE_CHECKING:
    from benchmarks.report.figures import Figure

TEMPLATES = Path(__file__).parent / "page"
MACHINE = "machine"  # the case of what was measured of the machine itself


@dataclass(frozen=True)
class Section:
    """A figure or, of a case without one, grids; and all rows of its cases."""

    name: str
    title: str
    about: str
    figure: Figure | None
    legend: Sequence[Style]
    grids: Sequence[Grid]
    entries: Sequence[Entry]
    absents: Sequence[Absent]


def page(documents: Sequence[Mapping[str, Any]], changes: Sequence[Change] | None = None) -> str:
    """One file of HTML. documents: as benchmarks/run.py writes them, of one or several machines.

    changes: what compare() said of the first two documents, before and after. OwlError when there is no
    document, one is none, or matplotlib is not there to draw with.
    """
    if len(documents) < (1 if changes is None else 2):
        raise UnsupportedError(f"a report of {len(documents)} documents; wanted at least one, to compare two")
    parsed = [parse(raw, f"document {place}") for place, raw in enumerate(documents, 1)]
    entries = [Entry(row, document) for document in parsed for row in document.rows]
    looks = styles(entry.row.contender for entry in entries)
    environment = templates(TEMPLATES)
    environment.filters.update(
        numbers=formats.numbers,
        percent=formats.percent,
        times=formats.times,
        interval=formats.interval,
        commit=_short,
    )
    sections = _sections(entries, looks)
    return environment.get_template("report.html").render(
        documents=parsed,
        machines=list(dict.fromkeys(document.machine for document in parsed)),
        rates=grids([_dated(entry) for entry in entries if entry.row.case == MACHINE]),
        glance=_glance(entries, looks),
        sections=sections,
        styles=looks,
        comparison=None if changes is None else _comparison(documents, changes),
    )


def write(
    path: Path, documents: Sequence[Mapping[str, Any]], changes: Sequence[Change] | None = None
) -> None:
    """The page as a file."""
    write_whole(path, page(documents, changes))


def check_packages() -> None:
    """OwlError when a report cannot be drawn here, before anything is measured for it."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        raise UnsupportedError(
            "a report is drawn with matplotlib, which is missing: pip install -e '.[report]' in the checkout"
        ) from None


def _sections(entries: Sequence[Entry], looks: Mapping[str, Style]) -> list[Section]:
    figures, drawn = _figures(), shown(entries)
    cases = grouped(entries, lambda entry: entry.row.case)
    found = []
    for names, draw in figures.FIGURES:
        of_it = [entry for name in names for entry in cases.pop(name, [])]
        if of_it:
            figure = draw([entry for entry in drawn if entry.row.case in names], looks)
            legend = [looks[name] for name in figure.legend]
            rest = grids([e for e in shown(of_it) if e.row.case == "throughput" and e.row.unit != "tok/s"])
            found.append(
                Section(figure.name, figure.title, figure.about, figure, legend, rest, of_it, absents(of_it))
            )
    cases.pop(MACHINE, None)
    for case, of_it in cases.items():
        found.append(
            Section(f"case-{len(found)}", case, "", None, [], grids(shown(of_it)), of_it, absents(of_it))
        )
    return found


def _glance(entries: Sequence[Entry], looks: Mapping[str, Style]) -> tuple[Figure, list[Style]]:
    figures = _figures()
    figure = figures.at_a_glance(shown(entries), looks)
    return figure, [looks[OURS], figures.BEST_PEER]


def _comparison(documents: Sequence[Mapping[str, Any]], changes: Sequence[Change]) -> dict[str, Any]:
    def of(*verdicts: str) -> list[Change]:
        return [change for change in changes if change.verdict in verdicts]

    return {
        "differences": differences(documents[0], documents[1]),
        "counts": counts(changes),
        "moved": of(BETTER, WORSE, MOVED),
        "one_only": of(GONE, NEW),
        "rest": [c for c in changes if c.verdict not in (BETTER, WORSE, MOVED, GONE, NEW)],
    }


def _dated(entry: Entry) -> Entry:
    """In a line of its run instead of one of what it was measured with."""
    return replace(entry, row=replace(entry.row, shape=entry.document.date, contender=""))


def _short(commit: str) -> str:
    """Enough of a commit to find it, and the "+" of one that files differed from."""
    return commit[:10] + ("+" if commit.endswith("+") and len(commit) > 10 else "")


def _figures() -> Any:
    """The module that draws, which needs matplotlib."""
    check_packages()
    from benchmarks.report import figures

    return figures
