"""The shapes as polygons in a circle of radius 1 around the origin, y down, proportions left to chance."""

from __future__ import annotations

import random
from collections.abc import Callable
from math import acos, atan2, cos, pi, radians, sin

from recipes.owl_nano import world

Point = tuple[float, float]


def _arc(
    start: float, end: float, count: int, center: Point = (0.0, 0.0), radius: float = 1.0
) -> list[Point]:
    """`count` points of a circle between two angles in radians, 0 = right, clockwise on the screen."""
    steps = [start + (end - start) * step / (count - 1) for step in range(count)]
    return [(center[0] + radius * cos(angle), center[1] + radius * sin(angle)) for angle in steps]


def _circle(_: random.Random) -> list[Point]:
    return _arc(0.0, 2 * pi * 47 / 48, 48)


def _square(_: random.Random) -> list[Point]:
    return [(x * 0.5**0.5, y * 0.5**0.5) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))]


def _triangle(rng: random.Random) -> list[Point]:
    below = radians(rng.uniform(22, 40))  # of the base corners, seen from the center
    return [(0.0, -1.0), (cos(below), sin(below)), (-cos(below), sin(below))]


def _star(rng: random.Random) -> list[Point]:
    inner = rng.uniform(*world.STAR_INNER)
    angles = [(pi * step / 5, inner if step % 2 else 1.0) for step in range(10)]
    return [(radius * sin(angle), -radius * cos(angle)) for angle, radius in angles]


def _heart(rng: random.Random) -> list[Point]:
    stretch = rng.uniform(0.92, 1.08)
    points = []
    for step in range(40):
        t = 2 * pi * step / 40
        y = 13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t)
        points.append((stretch * 16 * sin(t) ** 3 / 17.6, -(y + 2.5) / 17.6))
    return points


def _cross(rng: random.Random) -> list[Point]:
    a, b = rng.uniform(*world.CROSS_ARM), 0.97
    corner = [(a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b)]
    return corner + [(-x, -y) for x, y in corner]


def _diamond(rng: random.Random) -> list[Point]:
    width = rng.uniform(*world.DIAMOND_WIDTH)
    return [(0.0, -1.0), (width, 0.0), (0.0, 1.0), (-width, 0.0)]


def _moon(rng: random.Random) -> list[Point]:
    """The unit disc less a disc of radius r around (d, 0)."""
    d, r = rng.uniform(0.32, 0.52), rng.uniform(0.74, 0.9)
    x = (1 - r * r + d * d) / (2 * d)  # where the circles meet
    outer, inner = acos(x), atan2((1 - x * x) ** 0.5, x - d)
    return _arc(outer, 2 * pi - outer, 30) + _arc(2 * pi - inner, inner, 24, (d, 0.0), r)[1:-1]


OUTLINES: dict[str, Callable[[random.Random], list[Point]]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "diamond": _diamond,
    "moon": _moon,
}
