"""What the page draws: for each figure its rows in groups of panels, one for each machine and shape."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.report import drawing
from benchmarks.report.bars import Bars, bars_of
from benchmarks.report.drawing import Axis, DotRow, Line
from benchmarks.report.entries import Entry, grouped, limit, our_limit
from benchmarks.report.formats import percent, times
from benchmarks.report.styles import Style
from benchmarks.steps import OURS

BATCH = re.compile(r"(?P<title>.+) B(?P<x>\d+)-C(?P<behind>\d+)")
HELD = re.compile(r"(?P<title>.+) C(?P<x>\d+)|(?P<step>.+), (?P<rows>\d+) rows")
LOAD = re.compile(r"(?P<title>.+), (?:(?P<x>[\d.e+-]+) requests/s|(?P<clients>\d+) clients?)")
PERCENTILES = {"p50": "strong", "p90": "light", "p99": "dotted"}
LATENCIES = "first token", "between tokens"
LOST = 0.01  # share of requests without an answer from which on a point is hollow
Styles = Mapping[str, Style]


@dataclass(frozen=True)
class Panel:
    """drawn: an SVG, or bars. contenders: whom a legend has to name, because the drawing does not."""

    caption: str
    drawn: str | Bars
    contenders: Sequence[str] = ()


@dataclass(frozen=True)
class Group:
    """Panels that belong side by side."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Figure:
    """about: how to read it. dense: panels of any height fill columns."""

    name: str
    title: str
    about: str
    groups: Sequence[Group]
    dense: bool = False

    @property
    def legend(self) -> list[str]:
        """Contenders that are drawn without their names."""
        panels = [panel for group in self.groups for panel in group.panels]
        return list(dict.fromkeys(name for panel in panels for name in panel.contenders))


@dataclass(frozen=True)
class _Point:
    """An entry at its place on the x axis of a panel."""

    entry: Entry
    x: float


def at_a_glance(entries: Sequence[Entry], styles: Styles) -> Figure:
    """Of everything that has a limit, how much of it we reach, and the best peer at the same shape."""
    found = [e for e in entries if e.row.limit_fraction and (e.row.case != "serve" or "client" in e.row.shape)]
    found = [e for e in found if e.row.case != "load"]
    x = Axis("share of what the machine gives, %", range=(0, 1.05 * max([100.0, *map(_share, found)])))
    panels = []
    for machine, of_it in grouped(found, lambda e: e.machine).items():
        rows = []
        for name, same in grouped(of_it, lambda e: _called(e.row.case, e.row.metric)).items():
            ours = [(styles[OURS], _share(e)) for e in same if e.row.contender == OURS]
            if not ours:
                continue
            rows.append(DotRow(name, [*_best_peers(same, styles), *ours], percent(_middle(ours) / 100)))
        if rows:
            svg = drawing.dots(f"limits, {machine}", x, rows, at=100, width=560, labels=190)
            panels.append(Panel(machine, svg, _drawn_in(rows)))
    return Figure(
        "glance",
        "How far from the limit",
        "A dot is a shape: what owl_fast reaches of the limit there, beside the best of its peers at the same shape. "
        "The dashed line is the limit, the number the median of ours. The limit is what the machine allows at most: "
        "bytes that have to be moved at its measured bandwidth, or products at its measured rate, whichever takes "
        "longer. A dot beyond it had a faster moment than the measurement of the machine.",
        [Group("", panels)],
    )


def throughput(entries: Sequence[Entry], styles: Styles) -> Figure:
    """Tokens/s against the batch; where there is one batch alone, as bars."""
    found = [e for e in entries if e.row.case in ("decode", "throughput") and e.row.unit == "tok/s"]
    groups = []
    for (_, _, title), same in grouped(found, _batch_group).items():
        placed, others = _placed(same, BATCH)
        panels, ranges = [], _ranges(placed)
        by_panel = grouped(placed, lambda p: (_part(p, BATCH, "behind"), p.entry.machine))
        for (behind, machine), points in sorted(by_panel.items(), key=lambda of: int(of[0][0])):
            caption = f"{machine}: behind {behind} positions"
            if len({point.x for point in points}) > 1:
                name = f"tokens per second against batch, {title}, {caption}"
                svg = _lines(name, points, styles, "sequences at once", Axis("tok/s", log=True), *ranges)
                panels.append(Panel(caption, svg, _names(points)))
            else:
                panels += _bars([p.entry for p in points], styles, lambda e: caption + _sequences(e))
        panels += _bars(others, styles, lambda e: f"{e.machine}: {e.row.shape}")
        groups.append(Group(title, panels))
    return Figure(
        "throughput",
        "Tokens per second against batch",
        "All answers of a batch together. Both axes are logarithmic: the same distance is the same ratio "
        "everywhere. Bands go from p20 to p80; the dashed line is the limit for owl_fast.",
        groups,
    )


def serving(entries: Sequence[Entry], styles: Styles) -> Figure:
    """Latency against load of open loops, output of those and of closed ones."""
    found = [e for e in entries if e.row.case == "serve"]
    groups = []
    for title, same in grouped(found, _served).items():
        placed, closed = _placed(same, LOAD)
        lost = _lost(placed)
        panels = []
        for machine, points in grouped(placed, lambda p: p.entry.machine).items():
            for latency in LATENCIES:
                of_it = [p for p in points if p.entry.row.metric.startswith(f"{latency} p")]
                y = Axis(f"{latency}, ms", log=True, range=_ranges(of_it)[1])
                panels += _against_load(f"{machine}: {latency}, p50 p90 p99", title, of_it, styles, y, lost)
            output = [p for p in points if p.entry.row.metric == "output"]
            panels += _against_load(f"{machine}: output", title, output, styles, Axis("tok/s"), lost)
        outputs = [e for e in closed if e.row.metric == "output"]
        panels += _bars(outputs, styles, lambda e: f"{e.machine}: output, {e.row.shape.rsplit(', ', 1)[1]}")
        groups.append(Group(title, panels))
    return Figure(
        "serving",
        "Latency against load",
        "Clients over HTTP that send requests at random moments, so many a second. Of each server the thick line "
        "is p50, the thin one p90 and the dotted one p99; a hollow point left more than 1 % of its requests "
        "without an answer. The dashed line is the limit of the output; no limit is named for a latency. Bars are "
        "clients that wait for their answers.",
        groups,
    )


def memory(entries: Sequence[Entry], styles: Styles) -> Figure:
    """Peak memory against the length of a conversation, and against the rows of a training step."""
    found = [e for e in entries if e.row.case == "memory"]
    groups = []
    for (title, metric), same in grouped(found, lambda e: (_held(e), e.row.metric)).items():
        placed, others = _placed(same, HELD)
        ranges = _ranges(placed)
        top = max((p.entry.row.p80 or p.entry.median for p in placed), default=1.0)
        panels = []
        for machine, points in grouped(placed, lambda p: p.entry.machine).items():
            if len({point.x for point in points}) == 1:
                panels += _bars([p.entry for p in points], styles, lambda e: f"{e.machine}: {e.row.shape}")
                continue
            x = "positions" if HELD.fullmatch(same[0].row.shape)["x"] else "rows of a step"  # type: ignore[index]
            y = Axis(f"{metric}, {same[0].row.unit}")
            svg = _lines(f"{metric}, {title}, {machine}", points, styles, x, y, ranges[0], (0, 1.08 * top))
            panels.append(Panel(machine, svg, _names(points)))
        panels += _bars(others, styles, lambda e: f"{e.machine}: {e.row.shape}")
        groups.append(Group(f"{title}: {metric}", panels))
    return Figure(
        "memory",
        "Memory against sequence length",
        "Of a conversation that an engine holds, and of a training step. The dashed line is the least that "
        "owl_fast's way of holding it takes: weights, keys and values, and what has to be kept.",
        groups,
    )


def operations(entries: Sequence[Entry], styles: Styles) -> Figure:
    """Time of each operation at each shape, in multiples of its floor."""
    found = [e for e in entries if e.row.case == "ops" and e.row.limit_fraction]
    most = max((1 / _fraction(e) for e in found), default=2.0)
    least = min((1 / _fraction(e) for e in found), default=1.0)
    x = Axis("times the floor", log=True, range=(0.8 * min(least, 1.0), 1.25 * most))
    machines = {e.machine for e in found}
    groups = []
    for op, same in grouped(found, lambda e: _operation(e.row.shape)[0]).items():
        panels = []
        for machine, of_it in grouped(same, lambda e: e.machine).items():
            rows = [
                DotRow(_operation(shape)[1], [(styles[e.row.contender], 1 / _fraction(e)) for e in at], _ours(at))
                for shape, at in grouped(of_it, lambda e: e.row.shape).items()
            ]
            caption = f"{machine}: {op}" if len(machines) > 1 else op
            panels.append(Panel(caption, drawing.dots(f"{op}, {machine}", x, rows, at=1, labels=182), _drawn_in(rows)))
        groups.append(Group("", panels))
    dense = len(machines) == 1
    if dense:
        groups = [Group("", [panel for group in groups for panel in group.panels])]
    return Figure(
        "operations",
        "Time per operation against its roofline",
        "The dashed line at 1 is the floor: the bytes that have to be read and written over the measured bandwidth, "
        "or the products over the measured rate, whichever takes longer. Left is better; the number is ours. The "
        "axis is logarithmic and the same in all panels.",
        groups,
        dense,
    )


def barred(name: str, title: str, about: str, cases: Mapping[str, Sequence[str]]) -> Callable[..., Figure]:
    """A figure of bars alone. cases: of each the metrics to draw, all if there are none."""

    def drawn(entries: Sequence[Entry], styles: Styles) -> Figure:
        found = [e for e in entries if e.row.case in cases and e.row.metric in (cases[e.row.case] or [e.row.metric])]
        groups = [
            Group(_called(case, metric), _bars(same, styles, lambda e: f"{e.machine}: {e.row.shape}"))
            for (case, metric), same in grouped(found, lambda e: (e.row.case, e.row.metric)).items()
        ]
        return Figure(name, title, about, groups)

    return drawn


Drawn = Callable[[Sequence[Entry], Styles], Figure]
# With the cases that each shows, whose rows stand below it.
FIGURES: Sequence[tuple[tuple[str, ...], Drawn]] = (
    (("decode", "throughput"), throughput),
    (("serve",), serving),
    (("memory",), memory),
    (("ops",), operations),
    (
        ("prefill", "vision"),
        barred(
            "first-token",
            "First token and pictures",
            "Time from a prompt to its first token, and from the pixels of a picture to the rows that stand for it.",
            {"prefill": (), "vision": ()},
        ),
    ),
    (
        ("train",),
        barred(
            "training",
            "Training",
            "Steps of both stages: tokens per second, whose limit is the products a step needs over the measured "
            "rate, and the most memory that a step held.",
            {"train": ("throughput", "peak memory")},
        ),
    ),
    (
        ("load", "contention"),
        barred(
            "start",
            "Start, and a busy neighbour",
            "Loading a folder of weights beside a plain read of the same bytes; of memory the limit is a ceiling. "
            "Then steps of an answer alone and beside a process of somebody else’s on the same cores.",
            {"load": (), "contention": ()},
        ),
    ),
)


def _names(points: Sequence[_Point]) -> list[str]:
    return list(dict.fromkeys(point.entry.row.contender for point in points))


def _drawn_in(rows: Sequence[DotRow]) -> list[str]:
    return list(dict.fromkeys(style.name for row in rows for style, _ in row.dots))


def _bars(entries: Sequence[Entry], styles: Styles, caption: Callable[[Entry], str]) -> list[Panel]:
    """A panel for each machine, shape and metric."""
    same = grouped(entries, lambda e: (e.machine, e.row.shape, e.row.metric)).values()
    return [Panel(caption(of_it[0]), bars_of(of_it, styles)) for of_it in same]


def _lines(
    name: str,
    points: Sequence[_Point],
    styles: Styles,
    x: str,
    y: Axis,
    xs: drawing.Range,
    ys: drawing.Range,
) -> str:
    """Every contender over its points, and our limit."""
    ticks = sorted({point.x for point in points})
    return drawing.lines(
        name,
        Axis(x, log=True, ticks=ticks if len(ticks) < 9 else (), range=xs),
        replace(y, range=ys),
        [
            _line(styles[name], of_it)
            for name, of_it in grouped(points, lambda p: p.entry.row.contender).items()
        ],
        _limits(points),
    )


def _line(style: Style, points: Sequence[_Point]) -> Line:
    points = sorted(points, key=lambda point: point.x)
    rows = [point.entry.row for point in points]
    medians = [point.entry.median for point in points]
    return Line(
        style,
        [point.x for point in points],
        medians,
        [m if r.p20 is None else r.p20 for r, m in zip(rows, medians, strict=True)],
        [m if r.p80 is None else r.p80 for r, m in zip(rows, medians, strict=True)],
    )


def _limits(points: Sequence[_Point]) -> list[tuple[float, float]]:
    found = []
    for x, at in sorted(grouped(points, lambda p: p.x).items()):
        value = our_limit(point.entry for point in at)
        if value is not None:
            found.append((x, value))
    return found


def _against_load(
    caption: str, title: str, points: Sequence[_Point], styles: Styles, y: Axis, lost: set[tuple[object, ...]]
) -> list[Panel]:
    if not points:
        return []
    drawn = []
    for (contender, metric), of_it in grouped(
        points, lambda p: (p.entry.row.contender, p.entry.row.metric)
    ).items():
        kind = PERCENTILES.get(metric.rsplit(" ", 1)[-1], "strong")
        places = sorted(of_it, key=lambda p: p.x)
        hollow = [i for i, p in enumerate(places) if _where(p) in lost]
        drawn.append(replace(_line(styles[contender], of_it), kind=kind, hollow=hollow, lows=()))
    if not y.log:
        y = replace(y, range=(0, 1.08 * max([*(p.entry.median for p in points), *(v for _, v in _limits(points))])))
    x = Axis("requests/s offered", range=(0, 1.05 * max(p.x for p in points)))
    svg = drawing.lines(f"{title}, {caption}, against load", x, y, drawn, _limits(points))
    return [Panel(caption, svg, _names(points))]


def _lost(points: Sequence[_Point]) -> set[tuple[object, ...]]:
    """Where too many requests went without an answer."""
    counts = [p for p in points if p.entry.row.unit == "requests"]
    found = set()
    for where, at in grouped(counts, _where).items():
        answered = sum(p.entry.median for p in at if p.entry.row.metric == "answered")
        if answered < (1 - LOST) * sum(p.entry.median for p in at):
            found.add(where)
    return found


def _where(point: _Point) -> tuple[object, ...]:
    return point.entry.machine, point.entry.row.shape, point.entry.row.contender


def _placed(entries: Sequence[Entry], shape: re.Pattern[str]) -> tuple[list[_Point], list[Entry]]:
    """Those whose shape names a place on the x axis, and the others."""
    placed, others = [], []
    for entry in entries:
        match = shape.fullmatch(entry.row.shape)
        parts = match.groupdict() if match else {}
        place = parts.get("x") or parts.get("rows")
        if place:
            placed.append(_Point(entry, float(place)))
        else:
            others.append(entry)
    return placed, others


def _ranges(points: Sequence[_Point]) -> tuple[drawing.Range, drawing.Range]:
    """Of both axes, logarithmic, with some room: the same for all panels of a group."""
    if not points:
        return (1, 2), (1, 2)
    values = [
        value
        for point in points
        for value in (point.entry.row.p20, point.entry.median, point.entry.row.p80)
        if value is not None and value > 0
    ] + [value for value in (limit(point.entry.row) for point in points if point.entry.row.contender == OURS) if value]
    xs = [point.x for point in points]
    return (min(xs) / 1.15, max(xs) * 1.15), (min(values, default=1) / 1.2, max(values, default=1) * 1.2)


def _best_peers(entries: Sequence[Entry], styles: Styles) -> list[tuple[Style, float]]:
    """The best one of each shape."""
    peers = [e for e in entries if not styles[e.row.contender].ours]
    best = [max(at, key=_share) for at in grouped(peers, lambda e: e.row.shape).values()]
    return [(styles[e.row.contender], _share(e)) for e in best]


def _part(point: _Point, shape: re.Pattern[str], name: str) -> str:
    match = shape.fullmatch(point.entry.row.shape)
    assert match is not None
    return match[name]


def _batch_group(entry: Entry) -> tuple[bool, str, str]:
    """Those with a batch on an axis together, others by what they are."""
    row, match = entry.row, BATCH.fullmatch(entry.row.shape)
    what = _called(row.case, row.metric)
    if match:
        return True, "", f"{match['title']}, {what}"
    return False, "", what


def _sequences(entry: Entry) -> str:
    match = BATCH.fullmatch(entry.row.shape)
    assert match is not None
    return f", {match['x']} at once"


def _served(entry: Entry) -> str:
    return entry.row.shape.rsplit(", ", 1)[0]


def _held(entry: Entry) -> str:
    match = HELD.fullmatch(entry.row.shape)
    return (match["title"] or match["step"]) if match else entry.row.shape


def _operation(shape: str) -> tuple[str, str]:
    """Name and size: what comes behind the last space."""
    op, _, size = shape.rpartition(" ")
    return op or shape, size


def _called(case: str, metric: str) -> str:
    return case if metric in ("throughput", "time", "latency") and case != "train" else f"{case}: {metric}"


def _ours(entries: Sequence[Entry]) -> str:
    return next((times(1 / _fraction(e)) for e in entries if e.row.contender == OURS), "")


def _fraction(entry: Entry) -> float:
    assert entry.row.limit_fraction
    return entry.row.limit_fraction


def _share(entry: Entry) -> float:
    return 100 * _fraction(entry)


def _middle(dots: Sequence[tuple[Style, float]]) -> float:
    return statistics.median(value for _, value in dots)
