"""Pictures with captions, and how surely a model finds the picture that belongs to a caption.

The number of attention heads of a vision tower leaves no trace in its weights: read with a wrong number, a
model still speaks fluently, but sees badly or nothing. Then a caption is hardly likelier under its own
picture than under the others of its group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image, ImageDraw

SIDE = 224
PROMPT = "Human: <image>\nHuman: What is in the picture?\nAI: "


class Scorer(Protocol):
    """What is needed of an engine (engine.Engine)."""

    def score(self, prompt: str, images: Sequence[object], continuation: str, /) -> list[float]: ...


@dataclass(frozen=True)
class PairScores:
    """One number per caption: log-probability in nats that its own picture is chosen among its group, each
    weighed by how likely it makes the caption. 0 is certain; guessing gives -log(group)."""

    chosen: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.chosen) / len(self.chosen)

    @property
    def found(self) -> int:
        """Captions whose own picture is likelier than all others together."""
        return sum(value > math.log(0.5) for value in self.chosen)


@dataclass(frozen=True)
class Thing:
    """A shape of a colour; its middle in parts of the side."""

    colour: str
    shape: str
    x: float = 0.5
    y: float = 0.5
    radius: float = 0.2


Pair = tuple[Image.Image, str]


def groups() -> list[list[Pair]]:
    """Groups that differ in colour, in shape, in place, and in which shape has which colour."""
    colours = [
        (_draw(Thing(colour, "circle", radius=0.35)), f"A {colour} circle.")
        for colour in ("red", "blue", "green", "yellow")
    ]
    shapes = [
        (_draw(Thing("red", shape, radius=0.35)), f"A red {shape}.")
        for shape in ("star", "heart", "square", "triangle")
    ]
    places = [
        (_draw(Thing("blue", "square", x, y)), f"A blue square at the {place}.")
        for place, x, y in (("left", 0.2, 0.5), ("right", 0.8, 0.5), ("top", 0.5, 0.2), ("bottom", 0.5, 0.8))
    ]
    couples = [
        (
            _draw(Thing(left, "circle", 0.27, 0.5), Thing(right, other, 0.73, 0.5)),
            f"A {left} circle and a {right} {other}.",
        )
        for left, right, other in (
            *(("red", "blue", "square"), ("blue", "red", "square")),
            *(("red", "blue", "star"), ("blue", "red", "star")),
        )
    ]
    return [colours, shapes, places, couples]


def score_pairs(engine: Scorer) -> PairScores:
    """Every caption under every picture of its group."""
    chosen: list[float] = []
    for group in groups():
        for index, (_, caption) in enumerate(group):
            sums = [sum(engine.score(PROMPT, [picture], caption)) for picture, _ in group]
            best = max(sums)
            chosen.append(sums[index] - best - math.log(sum(math.exp(value - best) for value in sums)))
    return PairScores(tuple(chosen))


def ranking(scores: Mapping[str, PairScores]) -> list[str]:
    """The names, likeliest first."""
    return sorted(scores, key=lambda name: scores[name].mean, reverse=True)


def stands_out(scores: Mapping[str, PairScores]) -> bool:
    """Whether the first of the ranking leads every other by more than twice the error of that lead."""
    first, *others = (scores[name].chosen for name in ranking(scores))
    for chosen in others:
        leads = [a - b for a, b in zip(first, chosen, strict=True)]
        mean = sum(leads) / len(leads)
        error = math.sqrt(sum((lead - mean) ** 2 for lead in leads) / (len(leads) - 1) / len(leads))
        if mean <= 2 * error:
            return False
    return True


# --- drawing ----------------------------------------------------------------------------------------------

Points = list[tuple[float, float]]


def _draw(*things: Thing) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), "white")
    for thing in things:
        points = [
            (SIDE * (thing.x + thing.radius * x), SIDE * (thing.y + thing.radius * y))
            for x, y in _outline(thing.shape)
        ]
        ImageDraw.Draw(image).polygon(points, fill=thing.colour)
    return image


def _outline(shape: str) -> Points:
    """Corners around (0, 0), none further than 1 away; y grows downwards."""
    if shape == "heart":
        return [_heart(step / 90) for step in range(90)]
    if shape == "star":
        return [_around(corner / 10, 1.0 if corner % 2 == 0 else 0.4) for corner in range(10)]
    if shape == "square":
        return [_around(corner / 4 + 1 / 8) for corner in range(4)]
    corners = {"triangle": 3, "circle": 90}[shape]
    return [_around(corner / corners) for corner in range(corners)]


def _around(turn: float, radius: float = 1.0) -> tuple[float, float]:
    """The point this many turns clockwise from the top."""
    return radius * math.sin(2 * math.pi * turn), -radius * math.cos(2 * math.pi * turn)


def _heart(turn: float) -> tuple[float, float]:
    """On the curve x = 16 sin^3 t, y = 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t."""
    t = 2 * math.pi * turn
    height = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
    return 16 * math.sin(t) ** 3 / 17, -height / 17
