"""What stands in a picture's place while the language model learns without eyes.

Either the caption as text, or rows like those the abstractor will have to produce: one row per object, the
sum of the vectors of its color, shape and place, in reading order, mostly side by side; one row with the
number of shapes; one row per printed letter; empty rows in between.
"""

from __future__ import annotations

import random

from recipes.owl_nano.encoding import IMAGE_ROWS, Encoded, Encoder
from recipes.owl_nano.world import (
    MAX_SHAPES,
    NUMBER_WORDS,
    POSITIONS,
    TEXT_ROWS,
    Scene,
    Shape,
    caption,
)

TOGETHER = 0.8  # share of pictures whose shapes stand in neighbouring rows


class StandIns:
    """Writes scenes into encoded samples; all chance comes from rng."""

    def __init__(self, encoder: Encoder, rng: random.Random) -> None:
        self.encoder, self.rng = encoder, rng

    def as_text(self, result: Encoded, scene: Scene) -> None:
        result.add(self.encoder.text(caption(scene)))

    def as_rows(self, result: Encoded, scene: Scene) -> None:
        """IMAGE_ROWS rows; the last is the closing row, which vit_eos takes over."""
        rng = self.rng
        objects = [self._object(shape) for shape in scene.shapes]
        letters = self._letters(scene)
        rows = [self._empty(scene) for _ in range(IMAGE_ROWS - 1 - len(letters) - len(objects))]
        rows[rng.randrange(len(rows))] = self._number(scene)
        if rng.random() < TOGETHER:
            start = rng.randrange(len(rows) + 1)
            rows[start:start] = objects
        else:
            for place, row in zip(sorted(rng.sample(range(len(rows)), len(objects))), objects, strict=True):
                rows.insert(place, row)
        start = rng.randrange(len(rows) + 1)
        rows[start:start] = letters
        result.add_rows([*rows, self._word(".")])

    def either(self, result: Encoded, scene: Scene) -> None:
        (self.as_rows if self.rng.random() < 0.65 else self.as_text)(result, scene)

    def _word(self, text: str) -> tuple[int, ...]:
        ids = self.encoder.text(text)
        return (ids[-1],)

    def _object(self, shape: Shape) -> tuple[int, ...]:
        return self._word(shape.color) + self._word(shape.shape) + self._word(shape.position)

    def _number(self, scene: Scene) -> tuple[int, ...]:
        """How many shapes there are; nothing for more than a picture can hold."""
        count = len(scene.shapes)
        return self._word(NUMBER_WORDS[count]) + self._word("shape") if count <= MAX_SHAPES else ()

    def _letters(self, scene: Scene) -> list[tuple[int, ...]]:
        if scene.text is None or scene.text_row is None:
            return []
        place = self._word(TEXT_ROWS[scene.text_row])
        kind = self._word("number" if scene.text.isdigit() else "word")
        return [self._word(letter) + place + kind for letter in scene.text]

    def _empty(self, scene: Scene) -> tuple[int, ...]:
        """Nothing, or the place of a cell that holds no shape."""
        row, col = self.rng.randrange(3), self.rng.randrange(3)
        if self.rng.random() < 0.8 or any((s.row, s.col) == (row, col) for s in scene.shapes):
            return ()
        return self._word(POSITIONS[row][col])
