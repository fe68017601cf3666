"""Panels as SVG to stand inside a page: sized in its pixels, text as text, ink in the colours of the page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from benchmarks.report.styles import Style
from benchmarks.steps import OURS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes

PIXELS = 72  # of an inch: what matplotlib writes as points is taken as pixels
# Colours of the page, by what stands for them in a drawing.
INK, MUTED, GRID = "#010203", "#040506", "#070809"
OF_PAGE = {INK: "var(--text)", MUTED: "var(--muted)", GRID: "var(--line)"}
SETTINGS: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11,
    "text.parse_math": False,  # names are what they are
    "axes.unicode_minus": True,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
}
WIDTH, HEIGHT = 380, 250
LIMIT: dict[str, Any] = {"color": INK, "linestyle": (0, (5, 3)), "linewidth": 1.3, "zorder": 1.5}
LINES = {"strong": "-", "light": "-", "dotted": (0, (1, 1.6))}
Kind: TypeAlias = Literal["strong", "light", "dotted"]
Range: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """Points of one contender. lows, highs: p20 and p80 of each. hollow: places of points that are marked."""

    style: Style
    xs: Sequence[float]
    ys: Sequence[float]
    lows: Sequence[float] = ()
    highs: Sequence[float] = ()
    kind: Kind = "strong"
    hollow: Sequence[int] = ()


@dataclass(frozen=True)
class Axis:
    """label: what is measured, with its unit. ticks: where to label, anywhere if empty. range: None for what
    fits."""

    label: str
    log: bool = False
    ticks: Sequence[float] = ()
    range: Range | None = None


@dataclass(frozen=True)
class DotRow:
    """A row of a dot plot: values by contender, and a number to write at its end."""

    label: str
    dots: Sequence[tuple[Style, float]]
    told: str


def lines(
    name: str, x: Axis, y: Axis, drawn: Sequence[Line], limit: Sequence[tuple[float, float]] = ()
) -> str:
    """name: of this panel alone in the page, its description for those who do not see it. limit: points."""
    with _panel(name, WIDTH, HEIGHT) as (figure, axes, done):
        figure.subplots_adjust(left=58 / WIDTH, right=1 - 12 / WIDTH, bottom=42 / HEIGHT, top=1 - 12 / HEIGHT)
        if limit:
            axes.plot(*zip(*limit, strict=True), **LIMIT)
        for line in sorted(drawn, key=lambda line: line.style.name == OURS):
            _draw(axes, line)
        _set(axes, x, y)
    return done[0]


def dots(
    name: str,
    x: Axis,
    rows: Sequence[DotRow],
    at: float,
    width: int = WIDTH,
    labels: int = 150,
    apart: bool = False,
) -> str:
    """at: where the limit stands. labels: pixels to the left of the plot. apart: others lie below ours."""
    top, bottom, each = 6, 38, 30 if apart else 19
    shift = 0.17 if apart else 0.0
    height = top + bottom + each * len(rows)
    with _panel(name, width, height) as (figure, axes, done):
        figure.subplots_adjust(
            left=labels / width, right=1 - 48 / width, bottom=bottom / height, top=1 - top / height
        )
        axes.axvline(at, **LIMIT)
        for place, row in enumerate(rows):
            for style, value in sorted(row.dots, key=lambda dot: dot[0].ours):
                size = 7.0 if style.ours else 5.5
                y = place - shift if style.ours else place + shift
                look: dict[str, Any] = {
                    "markersize": size,
                    "markeredgewidth": 0,
                    "alpha": 0.75 if apart else 1,
                }
                axes.plot([value], [y], style.marker, color=style.color, zorder=3, **look)
            axes.text(
                1 + 6 / (width - labels - 48),
                place,
                row.told,
                va="center",
                transform=axes.get_yaxis_transform(),
            )
        axes.set_yticks(range(len(rows)), [row.label for row in rows], color=INK)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        _set(axes, x, None)
        axes.spines["left"].set_visible(False)
    return done[0]


def _draw(axes: Axes, line: Line) -> None:
    style, strong = line.style, line.kind == "strong"
    width = (2.4 if style.name == OURS else 1.7) if strong else 1.2
    order = 4 if style.name == OURS else 3
    if line.lows and strong:
        axes.fill_between(
            line.xs, line.lows, line.highs, color=style.color, alpha=0.18, linewidth=0, zorder=2
        )
    axes.plot(line.xs, line.ys, linestyle=LINES[line.kind], color=style.color, linewidth=width, zorder=order)
    if not strong:
        return
    full = [place for place in range(len(line.xs)) if place not in line.hollow]
    look: dict[str, Any] = {"marker": style.marker, "color": style.color, "linestyle": "", "zorder": order}
    size = 6.5 if style.ours else 5
    axes.plot(
        [line.xs[i] for i in full], [line.ys[i] for i in full], markersize=size, markeredgewidth=0, **look
    )
    if line.hollow:
        axes.plot(
            [line.xs[i] for i in line.hollow],
            [line.ys[i] for i in line.hollow],
            markersize=size + 1,
            markerfacecolor="none",
            markeredgewidth=1.3,
            **look,
        )


def _set(axes: Axes, x: Axis, y: Axis | None) -> None:
    axes.set_xlabel(x.label)
    _scale(axes, "x", x)
    if y is None:
        axes.grid(visible=True, axis="y", linewidth=0.5)
        return
    axes.set_ylabel(y.label)
    _scale(axes, "y", y)


def _scale(axes: Axes, which: Literal["x", "y"], wanted: Axis) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    if wanted.log:
        axes.set(**{f"{which}scale": "log"})
    if wanted.range is not None:
        axes.set(**{f"{which}lim": wanted.range})
    if wanted.ticks:
        axis.set_ticks(wanted.ticks)
        axis.set_ticks([], minor=True)
    elif wanted.log:
        low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
        subs = (1,) if high / low > 300 else (1, 3) if high / low > 30 else (1, 2, 5)
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_ticks([], minor=True)
    else:
        axis.set_major_locator(MaxNLocator(5))
    told = "{:.0f}".format if wanted.ticks else tick
    axis.set_major_formatter(FuncFormatter(lambda value, _: told(value)))
    axis.set_minor_formatter(NullFormatter())


def tick(value: float) -> str:
    """1.5, 20, 3000 as 3k."""
    for size, name in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{name}"
    return f"{value:.3g}".replace("-", "−")


@contextmanager
def _panel(name: str, width: float, height: float) -> Iterator[tuple[Figure, Axes, list[str]]]:
    """A figure to draw in, and where its SVG is afterwards. Names and numbers decide every byte of it."""
    done: list[str] = []
    with matplotlib.rc_context(SETTINGS | {"svg.hashsalt": name}):
        figure = Figure(figsize=(width / PIXELS, height / PIXELS), dpi=PIXELS)
        FigureCanvasSVG(figure)
        yield figure, figure.add_subplot(), done
        file = StringIO()
        figure.savefig(file, format="svg", dpi=PIXELS, metadata={"Date": None})
    done.append(_inline(file.getvalue(), name, width, height))


def _inline(svg: str, name: str, width: float, height: float) -> str:
    """Of a file the drawing alone: what is named is drawn again elsewhere, other names would be doubled in a
    page of several."""
    start = svg.index(">", svg.index("<svg")) + 1
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", svg[start:], flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body).replace("xlink:href", "href")
    body = re.sub(r"\s*\n\s*", "\n", body)
    for stands_for, color in OF_PAGE.items():
        body = body.replace(stands_for, color)
    head = f'<svg viewBox="0 0 {width:g} {height:g}" style="max-width:{1.25 * width:g}px" role="img"'
    return f'{head} aria-label="{escape(name)}">{body}'
