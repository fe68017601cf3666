"""Short sentences about a scene in random order, for the language phase and its drills.

Each sentence runs in one of the directions that the questions use (shape -> color, color -> shape, shape ->
place, place -> shape, existence, number of a kind, text), and marks the words that the picture decides:
in "The star is red." only "red". A sentence is a list of (text, decided) parts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from recipes.owl_nano.questions import something, unique_colors, unique_shapes
from recipes.owl_nano.world import NUMBER_WORDS, PLURALS, SHAPES, Scene, Shape, article

Sentence = list[tuple[str, bool]]
Builder = Callable[[random.Random, Scene], Sentence | None]


def _one(rng: random.Random, known: Sequence[Shape], build: Callable[[Shape], Sentence]) -> Sentence | None:
    return build(rng.choice(known)) if known else None


def say_color(rng: random.Random, scene: Scene) -> Sentence | None:
    known = unique_shapes(scene)
    return _one(rng, known, lambda s: [(f"The {s.shape} is", False), (s.color, True), (".", False)])


def say_shape(rng: random.Random, scene: Scene) -> Sentence | None:
    def build(s: Shape) -> Sentence:
        return [(f"The {s.color} shape is {article(s.shape)}", False), (s.shape, True), (".", False)]

    return _one(rng, unique_colors(scene), build)


def say_place(rng: random.Random, scene: Scene) -> Sentence | None:
    known = unique_shapes(scene)
    return _one(rng, known, lambda s: [(f"The {s.shape} is at the", False), (s.position, True), (".", False)])


def name_place(rng: random.Random, scene: Scene) -> Sentence | None:
    """The short form of say_place, learned first: the two words that belong together are neighbours."""
    known = unique_shapes(scene)
    return _one(rng, known, lambda s: [(f"The {s.shape}:", False), (s.position, True), (".", False)])


def name_what_is_at(rng: random.Random, scene: Scene) -> Sentence | None:
    """The short form of say_what_is_at."""

    def build(s: Shape) -> Sentence:
        return [(f"The {s.position}:", False), (f"{s.color} {s.shape}", True), (".", False)]

    return _one(rng, scene.shapes, build)


def say_what_is_at(rng: random.Random, scene: Scene) -> Sentence | None:
    def build(s: Shape) -> Sentence:
        return [
            (f"At the {s.position} is {article(s.color)}", False),
            (f"{s.color} {s.shape}", True),
            (".", False),
        ]

    return _one(rng, scene.shapes, build)


def say_whether(rng: random.Random, scene: Scene) -> Sentence | None:
    found = something(rng, scene)
    if found is None:
        return None
    thing, truth = found
    return [(f"Is there {article(thing)} {thing}?", False), ("Yes" if truth else "No", True), (".", False)]


def say_number(rng: random.Random, scene: Scene) -> Sentence | None:
    present = [s.shape for s in scene.shapes]
    shape = rng.choice(present) if present and rng.random() < 0.7 else rng.choice(SHAPES)
    count = present.count(shape)
    if count > 3:
        return None
    return [(f"How many {PLURALS[shape]}?", False), (NUMBER_WORDS[count], True), (".", False)]


def say_total(rng: random.Random, scene: Scene) -> Sentence | None:
    if len(scene.shapes) > 3:
        return None
    return [("How many shapes?", False), (NUMBER_WORDS[len(scene.shapes)], True), (".", False)]


def say_text(rng: random.Random, scene: Scene) -> Sentence:
    if scene.text is None:
        return [("The text says", False), ("no", True), (".", False)]
    return [("The text says", False), (f"{scene.text}.", True)]


BUILDERS: dict[str, Builder] = {
    "color": say_color,
    "name_place": name_place,
    "shape": say_shape,
    "whether": say_whether,
    "place": say_place,
    "text": say_text,
    "number": say_number,
    "total": say_total,
    "name_what_is_at": name_what_is_at,
    "what_is_at": say_what_is_at,
}
# Shares of the directions.
WEIGHTS = {
    "color": 0.7,
    "shape": 1.0,
    "whether": 1.0,
    "place": 2.2,
    "what_is_at": 0.8,
    "text": 1.3,
    "number": 1.3,
    "total": 1.0,
}


def statements(
    rng: random.Random, scene: Scene, count: int, weights: Mapping[str, float] = WEIGHTS
) -> list[tuple[str, Sentence]]:
    """Up to count (direction, sentence) pairs, directions drawn by weight.

    Those that the scene does not allow (no shape is unique) are left out, but at least one sentence comes.
    """
    found: list[tuple[str, Sentence]] = []
    for direction in rng.choices(tuple(weights), tuple(weights.values()), k=count):
        sentence = BUILDERS[direction](rng, scene)
        if sentence is not None:
            found.append((direction, sentence))
    return found or [("text", say_text(rng, scene))]
