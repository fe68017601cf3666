"""The owl-nano world: what can be in a picture, and how a picture is put into one sentence.

Plain data and scene logic, no pixels: two independent drawing programs (`draw`, `draw_blind`) and the
dialogue writer share this file and nothing else. All lengths are pixels of a 112 x 112 picture.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal, NamedTuple

Split = Literal["train", "heldout"]
Span = tuple[float, float]


class HsvRange(NamedTuple):
    """A color's range: hue in degrees (may pass 360), saturation and value in 0..1."""

    hue: Span
    saturation: Span
    value: Span


COLORS: dict[str, HsvRange] = {
    "red": HsvRange((352, 368), (0.75, 1.0), (0.72, 1.0)),
    "orange": HsvRange((22, 34), (0.85, 1.0), (0.9, 1.0)),
    "yellow": HsvRange((50, 60), (0.75, 1.0), (0.9, 1.0)),
    "green": HsvRange((100, 140), (0.6, 1.0), (0.45, 0.85)),
    "cyan": HsvRange((178, 192), (0.6, 1.0), (0.8, 1.0)),
    "blue": HsvRange((215, 240), (0.7, 1.0), (0.6, 1.0)),
    "purple": HsvRange((268, 288), (0.6, 0.95), (0.5, 0.85)),
    "pink": HsvRange((325, 345), (0.35, 0.6), (0.95, 1.0)),
}
COLOR_NAMES: tuple[str, ...] = tuple(COLORS)
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "heart", "cross", "diamond", "moon")
PLURALS: dict[str, str] = {shape: shape + "s" for shape in SHAPES} | {"cross": "crosses"}
POSITIONS: tuple[tuple[str, str, str], ...] = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)
TEXT_ROWS: tuple[str, str, str] = ("top", "center", "bottom")
# fmt: off
WORDS: tuple[str, ...] = (
    "STOP", "OPEN", "EXIT", "SALE", "CAFE", "TAXI", "BUS", "HELLO", "OWL", "CAT",
    "DOG", "SUN", "MOON", "STAR", "FISH", "BIRD", "TREE", "BOOK", "MILK", "TEA",
    "COLD", "HOT", "LEFT", "RIGHT", "UP", "DOWN", "YES", "NO", "GO", "SLOW",
    "FAST", "PARK", "BANK", "HOTEL", "PIZZA", "BREAD", "APPLE", "LEMON", "WATER", "MUSIC",
)
# fmt: on
NUMBERS: tuple[str, ...] = tuple(str(number) for number in range(100))
NUMBER_WORDS: tuple[str, ...] = ("no", "one", "two", "three")
TEXT_SHARE = 0.45  # of the pictures
NUMBER_SHARE = 0.3  # of the texts
MAX_SHAPES = 3

# Geometry and light, for the drawing programs.
PICTURE_SIZE = 112
CENTER_JITTER = 4.0
RADIUS: Span = (10.0, 17.0)
SINGLE_RADIUS: Span = (10.0, 25.0)  # one shape, no text
MAX_ROTATION = 12.0  # degrees, either way
OUTLINE_SHARE = 0.15
FILL_VARIATION = 0.05
STAR_INNER: Span = (0.39, 0.45)  # inner radius / outer radius
CROSS_ARM: Span = (0.27, 0.33)  # arm half-width / radius
DIAMOND_WIDTH: Span = (0.63, 0.73)  # half-width / half-height
LETTER_SIZE: Span = (17.0, 24.0)
TEXT_WIDTH = 106.0
MAX_TEXT_ROTATION = 3.0  # degrees, either way
LIGHT_BACKGROUND: Span = (150.0, 245.0)
DARK_BACKGROUND: Span = (15.0, 80.0)
BACKGROUND_TINT = 9.0  # per channel, either way
GRADIENT_LEVELS = 40.0
NOISE_SIGMA: Span = (0.0, 12.0)
TEXT_COLORS: dict[str, Span] = {
    "light": (0.0, 45.0),
    "dark": (210.0, 255.0),
}  # background -> level of the letters

# Never in a training picture: the held-out split asks for what was never shown together.
HELDOUT_PAIRS: frozenset[tuple[str, str]] = frozenset(
    {
        ("red", "moon"),
        ("orange", "cross"),
        ("green", "heart"),
        ("blue", "diamond"),
        ("purple", "circle"),
        ("pink", "triangle"),
    }
)
HELDOUT_TRIPLES: frozenset[tuple[str, str, int, int]] = frozenset(
    (color, shape, *divmod((3 * i + 5 * j) % 9, 3))
    for i, color in enumerate(COLOR_NAMES)
    for j, shape in enumerate(SHAPES)
    if (i + 2 * j) % 3 == 0
)
HELDOUT_TEXTS: frozenset[str] = frozenset({"4", "17", "23", "35", "48", "51", "66", "72", "89", "90"})


@dataclass(frozen=True)
class Shape:
    """One shape in the cell (row, col) of the 3 x 3 grid, both 0..2 from the top left."""

    color: str
    shape: str
    row: int
    col: int

    @property
    def position(self) -> str:
        """The cell's name, e.g. "top left"."""
        return POSITIONS[self.row][self.col]


@dataclass(frozen=True)
class Scene:
    """What a picture shows: up to three shapes in reading order and at most one text, which fills a row.

    Raises ValueError for a scene outside the world: shapes out of reading order or in one cell, a shape in
    the text's row, nothing at all, or a text without a row.
    """

    shapes: tuple[Shape, ...]
    text: str | None = None
    text_row: int | None = None

    def __post_init__(self) -> None:
        cells = [(shape.row, shape.col) for shape in self.shapes]
        if cells != sorted(set(cells)):
            raise ValueError(f"shapes in cells {cells}: want distinct cells in reading order")
        if (self.text is None) != (self.text_row is None):
            raise ValueError(f"text {self.text!r} with row {self.text_row!r}: want both or neither")
        if any(row == self.text_row for row, _ in cells):
            raise ValueError(f"a shape stands in row {self.text_row}, which the text {self.text!r} fills")
        if not cells and self.text is None:
            raise ValueError("an empty scene: want at least one shape or a text")


def is_unseen(scene: Scene) -> bool:
    """Whether the scene holds a combination or a number that no training picture shows."""
    return scene.text in HELDOUT_TEXTS or any(
        (s.color, s.shape) in HELDOUT_PAIRS or (s.color, s.shape, s.row, s.col) in HELDOUT_TRIPLES
        for s in scene.shapes
    )


def sample_scene(
    rng: random.Random, *, n_shapes: int | None = None, text: bool | None = None, split: Split = "train"
) -> Scene:
    """Draw a random scene.

    Args:
        rng: the only source of chance.
        n_shapes: number of shapes, 0..3; None draws it.
        text: with text, without, or None for the world's share (always with text when n_shapes is 0).
        split: "train" never holds an unseen combination, "heldout" always at least one.
    Raises:
        ValueError: no such scene exists (more than three shapes; no shape and no text), or unknown split.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f"split {split!r}: want 'train' or 'heldout'")
    if n_shapes is not None and not 0 <= n_shapes <= MAX_SHAPES:
        raise ValueError(f"n_shapes {n_shapes}: want 0 to {MAX_SHAPES}")
    if n_shapes == 0 and text is False:
        raise ValueError("no shapes and no text: want at least one of them")
    if text is None:
        text = n_shapes == 0 or rng.random() < TEXT_SHARE
    if n_shapes is None:
        n_shapes = rng.choices((0, 1, 2, 3), (1, 3, 3, 3))[0] if text else rng.randint(1, MAX_SHAPES)
    while True:  # the counts are fixed above, so refusing a scene does not shift their shares
        scene = _fill(rng, n_shapes, text)
        if is_unseen(scene) == (split == "heldout"):
            return scene


def _fill(rng: random.Random, n_shapes: int, text: bool) -> Scene:
    """A scene of the given counts, its contents drawn freely."""
    word: str | None = None
    text_row: int | None = None
    if text:
        word = rng.choice(NUMBERS if rng.random() < NUMBER_SHARE else WORDS)
        text_row = rng.randrange(3)
    cells = [(row, col) for row in range(3) if row != text_row for col in range(3)]
    shapes = tuple(
        Shape(rng.choice(COLOR_NAMES), rng.choice(SHAPES), row, col)
        for row, col in sorted(rng.sample(cells, n_shapes))
    )
    return Scene(shapes, word, text_row)


def article(word: str) -> str:
    """The indefinite article that goes before `word`."""
    return "an" if word[0] in "aeiou" else "a"


def text_kind(text: str) -> str:
    """What a caption calls the text: "number" or "word"."""
    return "number" if text.isdigit() else "word"


def caption(scene: Scene) -> str:
    """One sentence: the shapes in reading order, then the text."""
    parts = [f"{article(s.color)} {s.color} {s.shape} at the {s.position}" for s in scene.shapes]
    if scene.text is not None and scene.text_row is not None:
        parts.append(f"the {text_kind(scene.text)} {scene.text} at the {TEXT_ROWS[scene.text_row]}")
    sentence = ", ".join(parts)
    return sentence[0].upper() + sentence[1:] + "."
