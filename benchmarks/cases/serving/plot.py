"""Latency against load, as a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.cases.serving.asked import KINDS
from benchmarks.cases.serving.load import Seen, percentile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from benchmarks.cases.serve import Point

LINES = {50: "-", 99: "--"}  # percentile -> style
LATENCIES: dict[str, Callable[[Seen], list[float]]] = {
    "first token": lambda seen: seen.first,
    "between tokens": lambda seen: seen.between,
}
LOST = 0.01  # share of requests without an answer from which on a point is marked


def draw(points: Sequence[Point], path: Path, title: str) -> None:
    """The format is that of the path's ending."""
    figure_of(points, title).savefig(path, dpi=150)


def figure_of(points: Sequence[Point], title: str) -> Figure:
    """p50 and p99 of both latencies for each kind of request."""
    kinds = [kind for kind in KINDS if any(point.kind == kind for point in points)]
    contenders = list(dict.fromkeys(point.contender for point in points))
    figure = Figure(figsize=(1.5 + 4 * len(kinds), 6.5), layout="constrained")
    grid = figure.subplots(len(LATENCIES), len(kinds), squeeze=False, sharex="col", sharey="row")
    for (name, latency), panels in zip(LATENCIES.items(), grid, strict=True):
        for kind, axes in zip(kinds, panels, strict=True):
            for place, contender in enumerate(contenders):
                found = [p for p in points if (p.kind, p.contender) == (kind, contender)]
                _draw(axes, found, latency, f"C{place}")
            axes.set(yscale="log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.grid(alpha=0.3)
        panels[0].set_ylabel(f"{name}, ms")
    for kind, top, bottom in zip(kinds, grid[0], grid[-1], strict=True):
        top.set_title(kind)
        bottom.set(xlabel="requests/s offered", xlim=(0, None))
    legend = [Line2D([], [], color=f"C{place}", label=name) for place, name in enumerate(contenders)]
    legend += [Line2D([], [], color="grey", ls=style, label=f"p{p}") for p, style in LINES.items()]
    lost = f"over {LOST:.0%} without an answer"
    legend.append(Line2D([], [], color="grey", ls="", marker="x", label=lost))
    figure.legend(handles=legend, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(title)
    return figure


def _draw(axes: Axes, points: Sequence[Point], latency: Callable[[Seen], list[float]], color: str) -> None:
    """One contender's lines over the loads of open loops that were answered at all."""
    found = [
        (p.load.offered, p.seen, latency(p.seen))
        for p in points
        if p.load.offered is not None and isinstance(p.seen, Seen) and latency(p.seen)
    ]
    loads = [offered for offered, *_ in found]
    lost = [place for place, (_, s, _) in enumerate(found) if len(s.answered) < (1 - LOST) * len(s.outcomes)]
    for percent, style in LINES.items():
        values = [1e3 * percentile(seconds, percent) for *_, seconds in found]
        axes.plot(loads, values, style, color=color, marker=".", linewidth=1.4)
        axes.plot([loads[i] for i in lost], [values[i] for i in lost], "x", color=color, markersize=8)
