"""What the page draws: for each figure its rows in groups of panels, one for each machine and shape."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.documents import LARGEST
from benchmarks.report import drawing
from benchmarks.report.bars import Bars, bars_of
from benchmarks.report.drawing import Axis, DotRow, Line
from benchmarks.report.entries import CEILINGS, Entry, grouped, limit, our_limit
from benchmarks.report.formats import percent, times
from benchmarks.report.styles import Style
from benchmarks.steps import OURS

BATCH = re.compile(r"(?P<title>.+) B(?P<x>\d+)-C(?P<behind>\d+)")
HELD = re.compile(r"(?P<title>.+) C(?P<x>\d+)|(?P<step>.+), (?P<rows>\d+) rows")
LOAD = re.compile(r"(?P<title>.+), (?:(?P<x>[\d.e+-]+) requests/s|(?P<clients>\d+) clients?)")
PERCENTILES: Mapping[str, drawing.Kind] = {"p50": "strong", "p90": "light", "p99": "dotted"}
SERVED = {"first token": "ms", "between tokens": "ms", "output": "tok/s"}
LOST = 0.01  # share of requests without an answer from which on a point is hollow
BEST_PEER = Style("best peer", "#8b8b86", "D", "◆", ours=False)
Styles = Mapping[str, Style]


@dataclass(frozen=True)
class Panel:
    """drawn: an SVG, or bars. contenders: whom a legend has to name, because the drawing does not."""

    caption: str
    machine: str
    drawn: str | Bars
    contenders: Sequence[str] = ()


@dataclass(frozen=True)
class Group:
    """Panels that belong together."""

    title: str
    panels: Sequence[Panel]

    @property
    def columns(self) -> int:
        """One for each machine, where all have the same panels; 0 where panels just follow each other."""
        machines = len({panel.machine for panel in self.panels})
        captions = len({panel.caption for panel in self.panels})
        return machines if machines > 1 and len(self.panels) == machines * captions else 0


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
    found = [e for e in entries if e.has_limit and e.row.case not in (*CEILINGS, "serve")]
    found += _at_capacity([e for e in entries if e.has_limit and e.row.case == "serve"])
    x = Axis("share of the limit, %", range=(0, 1.05 * max([100.0, *map(_share, found)])))
    panels = []
    for machine, of_it in grouped(found, lambda e: e.machine).items():
        rows = []
        for name, same in grouped(of_it, lambda e: _called(e.row.case, e.row.metric)).items():
            ours = [(styles[OURS], _share(e)) for e in same if e.row.contender == OURS]
            if ours:
                rows.append(DotRow(name, [*_best_peers(same, styles), *ours], percent(_middle(ours) / 100)))
        if rows:
            svg = drawing.dots(f"limits, {machine}", x, rows, at=100, width=480, labels=162, apart=True)
            panels.append(Panel(machine, machine, svg, (OURS, BEST_PEER.name)))
    return Figure(
        "glance",
        "How far from the limit",
        "A dot is a shape: what owl_fast reaches of the limit there, and below it the best of its peers at "
        "the same shape. The number is the median of ours. The limit is what the machine allows: bytes "
        "that have to be moved at its measured bandwidth, or products at its measured rate, whichever "
        "takes longer. A dot beyond it had a faster moment than the measurement of the machine.",
        [Group("", panels)],
    )


def throughput(entries: Sequence[Entry], styles: Styles) -> Figure:
    """Tokens/s against the batch; where there is one batch alone, as bars."""
    found = [e for e in entries if e.row.unit == "tok/s"]
    placed, others = _placed(found, BATCH)
    groups = []
    for title, of_model in grouped(placed, lambda p: _part(p, "title")).items():
        panels = []
        by_panel = grouped(of_model, lambda p: (_what(p), int(_part(p, "behind")), p.entry.machine))
        in_lines = [p for points in by_panel.values() if _is_line(points) for p in points]
        ranges = _ranges(in_lines)
        for (what, behind, machine), points in sorted(by_panel.items(), key=lambda panel: panel[0][:2]):
            caption = f"{what}, behind {behind} positions"
            if _is_line(points):
                name = f"tokens per second against batch, {title}, {caption}, {machine}"
                svg = _lines(name, points, styles, "sequences at once", Axis("tok/s", log=True), *ranges)
                panels.append(Panel(caption, machine, svg, _names(points)))
            else:
                panels += _bars([p.entry for p in points], styles, f"{caption}, {points[0].x:g} at once")
        groups.append(Group(title, panels))
    for what, same in grouped(others, lambda e: _called(e.row.case, e.row.metric)).items():
        groups.append(Group(what, _bars(same, styles)))
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
    for title, same in grouped(found, lambda e: _load(e)[0]).items():
        placed, closed = _placed(same, LOAD)
        lost = _lost(placed)
        panels = []
        for what, unit in SERVED.items():
            named = (what, *(f"{what} {percentile}" for percentile in PERCENTILES))
            of_it = [p for p in placed if p.entry.row.metric in named]
            for machine, points in grouped(of_it, lambda p: p.entry.machine).items():
                svg = _against_load(f"{title}, {what}, {machine}", points, styles, unit, lost)
                panels.append(Panel(what, machine, svg, _names(points)))
        for load, outputs in grouped(
            (e for e in closed if e.row.metric == "output"), lambda e: _load(e)[1]
        ).items():
            panels += _bars(outputs, styles, f"output, {load}")
        groups.append(Group(title, panels))
    return Figure(
        "serving",
        "Latency against load",
        "Clients over HTTP send requests at random moments, so many a second. Of a latency the thick line "
        "is p50, the thin one p90 and the dotted one p99; at a hollow point more than 1 % of the requests "
        "got no answer. The dashed line is the limit of the output; a latency has none. Bars are of "
        "clients that wait for their answers. Upright axes are logarithmic.",
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
            if not _is_line(points):
                panels += _bars([p.entry for p in points], styles)
                continue
            x = "positions" if HELD.fullmatch(same[0].row.shape)["x"] else "rows of a step"  # type: ignore[index]
            y = Axis(f"{metric}, {same[0].row.unit}")
            svg = _lines(f"{metric}, {title}, {machine}", points, styles, x, y, ranges[0], (0, 1.08 * top))
            panels.append(Panel(f"{title}: {metric}", machine, svg, _names(points)))
        panels += _bars(others, styles)
        groups.append(Group("", panels))
    if len({e.machine for e in found}) == 1:  # else a line of panels holds one thing on every machine
        groups = [Group("", [panel for group in groups for panel in group.panels])]
    return Figure(
        "memory",
        "Memory against sequence length",
        "Of a conversation that an engine holds, and of a training step. The dashed line is the least that "
        "owl_fast's way of holding it takes: weights, keys and values, and what has to be kept.",
        groups,
    )


def operations(entries: Sequence[Entry], styles: Styles) -> Figure:
    """Time of each operation at each shape, in multiples of its floor."""
    found = [e for e in entries if e.has_limit]
    most = max((1 / _fraction(e) for e in found), default=2.0)
    least = min((1 / _fraction(e) for e in found), default=1.0)
    x = Axis("times the floor", log=True, range=(0.8 * min(least, 1.0), 1.25 * most))
    machines = {e.machine for e in found}
    groups = []
    for op, same in grouped(found, lambda e: _operation(e.row.shape)[0]).items():
        panels = []
        for machine, of_it in grouped(same, lambda e: e.machine).items():
            rows = [
                DotRow(
                    _operation(shape)[1], [(styles[e.row.contender], 1 / _fraction(e)) for e in at], _ours(at)
                )
                for shape, at in grouped(of_it, lambda e: e.row.shape).items()
            ]
            labels = max(182, *(6 * len(row.label) for row in rows))
            svg = drawing.dots(f"{op}, {machine}", x, rows, at=1, labels=labels)
            panels.append(Panel(op, machine, svg, _drawn_in(rows)))
        groups.append(Group("", panels))
    dense = len(machines) == 1
    if dense:
        groups = [Group("", [panel for group in groups for panel in group.panels])]
    return Figure(
        "operations",
        "Time per operation against its roofline",
        "The dashed line at 1 is the floor: the bytes that have to be read and written over the measured "
        "bandwidth, or the products over the measured rate, whichever takes longer. Left is better; the "
        "number is ours. The axis is logarithmic and the same in all panels.",
        groups,
        dense,
    )


def barred(name: str, title: str, about: str, cases: Mapping[str, Sequence[str]]) -> Callable[..., Figure]:
    """A figure of bars alone. cases: of each the metrics to draw, all if there are none."""

    def drawn(entries: Sequence[Entry], styles: Styles) -> Figure:
        found = [e for e in entries if e.row.metric in (cases[e.row.case] or [e.row.metric])]
        groups = []
        for case, of_it in grouped(found, lambda e: e.row.case).items():
            by_metric = grouped(of_it, lambda e: e.row.metric)
            panels = []
            for metric, same in by_metric.items():
                of_metric = _bars(same, styles)
                if len(by_metric) > 1:
                    of_metric = [replace(p, caption=f"{metric}, {p.caption}") for p in of_metric]
                panels += of_metric
            groups.append(Group(case, panels))
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
            "Time from a prompt to its first token, and from the pixels of a picture to the rows that "
            "stand for it.",
            {"prefill": (), "vision": ()},
        ),
    ),
    (
        ("train",),
        barred(
            "training",
            "Training",
            "Steps of both stages: tokens per second, whose limit is the products a step needs over the "
            "measured rate, and the most memory that a step held.",
            {"train": ("throughput", "peak memory")},
        ),
    ),
    (
        ("load", "contention"),
        barred(
            "start",
            "Start, and a busy neighbour",
            "Loading a folder of weights beside a plain read of the same bytes; of memory the limit is a "
            "ceiling. Then steps of an answer alone and beside a process of somebody else’s on the same "
            "cores.",
            {"load": (), "contention": ()},
        ),
    ),
)


def _names(points: Sequence[_Point]) -> list[str]:
    return list(dict.fromkeys(point.entry.row.contender for point in points))


def _drawn_in(rows: Sequence[DotRow]) -> list[str]:
    return list(dict.fromkeys(style.name for row in rows for style, _ in row.dots))


def _bars(entries: Sequence[Entry], styles: Styles, caption: str = "") -> list[Panel]:
    """A panel for each shape, machine and metric; its caption is the shape unless there is one."""
    same = grouped(entries, lambda e: (e.row.shape, e.machine, e.row.metric))
    return [Panel(caption or shape, machine, bars_of(at, styles)) for (shape, machine, _), at in same.items()]


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
    name: str, points: Sequence[_Point], styles: Styles, unit: str, lost: set[tuple[object, ...]]
) -> str:
    drawn = []
    for (contender, metric), at in grouped(
        points, lambda p: (p.entry.row.contender, p.entry.row.metric)
    ).items():
        kind = PERCENTILES.get(metric.rsplit(" ", 1)[-1], "strong")
        hollow = [i for i, p in enumerate(sorted(at, key=lambda p: p.x)) if _where(p) in lost]
        drawn.append(replace(_line(styles[contender], at), kind=kind, hollow=hollow, lows=()))
    x = Axis("requests/s offered", range=(0, 1.05 * max(p.x for p in points)))
    y = Axis(unit, log=True, range=_ranges(points)[1])
    return drawing.lines(f"{name}, against load", x, y, drawn, _limits(points))


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
        try:
            x = float(place or 0)
        except ValueError:
            x = 0.0
        if 0 < x < LARGEST and entry.median > 0:  # axes are logarithmic
            placed.append(_Point(entry, x))
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
    ] + [
        value
        for value in (limit(point.entry.row) for point in points if point.entry.row.contender == OURS)
        if value
    ]
    xs = [point.x for point in points]
    return (min(xs) / 1.15, max(xs) * 1.15), (min(values, default=1) / 1.2, max(values, default=1) * 1.2)


def _best_peers(entries: Sequence[Entry], styles: Styles) -> list[tuple[Style, float]]:
    """The best one of each shape."""
    peers = [e for e in entries if not styles[e.row.contender].ours]
    best = [max(at, key=_share) for at in grouped(peers, lambda e: e.row.shape).values()]
    return [(BEST_PEER, _share(e)) for e in best]


def _at_capacity(entries: Sequence[Entry]) -> list[Entry]:
    """Of each kind of request the load under which we give the most."""
    found = []
    for at in grouped(entries, lambda e: (e.machine, _load(e)[0])).values():
        ours = [e for e in at if e.row.contender == OURS]
        if ours:
            best = max(ours, key=_share).row.shape
            found += [e for e in at if e.row.shape == best]
    return found


def _is_line(points: Sequence[_Point]) -> bool:
    return len({point.x for point in points}) > 1


def _part(point: _Point, name: str) -> str:
    match = BATCH.fullmatch(point.entry.row.shape)
    assert match is not None
    return match[name]


def _what(point: _Point) -> str:
    row = point.entry.row
    return row.case if row.case == row.metric or row.metric == "throughput" else row.metric


def _load(entry: Entry) -> tuple[str, str]:
    """What was asked, and under which load."""
    title, _, load = entry.row.shape.rpartition(", ")
    return title, load


def _held(entry: Entry) -> str:
    match = HELD.fullmatch(entry.row.shape)
    return (match["title"] or match["step"]) if match else entry.row.shape


def _operation(shape: str) -> tuple[str, str]:
    """Name and size, which begins with the first word that has a number and a dash."""
    op, *size = re.split(r" (?=[^ ]*\d[^ ]*-)", shape, maxsplit=1)
    return op, "".join(size)


def _called(case: str, metric: str) -> str:
    return case if metric in ("throughput", "time", "latency") and case != "train" else f"{case}: {metric}"


def _ours(entries: Sequence[Entry]) -> str:
    return next((times(1 / _fraction(e)) for e in entries if e.row.contender == OURS), "")


def _fraction(entry: Entry) -> float:
    assert entry.row.limit_fraction is not None
    return entry.row.limit_fraction


def _share(entry: Entry) -> float:
    return 100 * _fraction(entry)


def _middle(dots: Sequence[tuple[Style, float]]) -> float:
    return statistics.median(value for _, value in dots)
