"""What stands in a picture's place while the language model learns without eyes.

Either the caption as text, or rows like those the abstractor will have to produce: one row per object, the
sum of the vectors of its color, shape and place, mostly in reading order, among empty rows, and one row per
printed letter.
"""

from __future__ import annotations

import random

from recipes.owl_nano.encoding import IMAGE_ROWS, Encoded, Encoder
from recipes.owl_nano.world import POSITIONS, TEXT_ROWS, Scene, Shape, caption


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
        if rng.random() < 0.25:
            rng.shuffle(objects)
        letters = self._letters(scene)
        free = IMAGE_ROWS - 1 - len(letters)
        start = rng.randrange(free + 1)
        slots = sorted(rng.sample(range(free), len(objects)))
        rows = [self._empty(scene) for _ in range(free)]
        for slot, row in zip(slots, objects, strict=True):
            rows[slot] = row
        rows[start:start] = letters
        result.add_rows([*rows, self._word(".")])

    def either(self, result: Encoded, scene: Scene) -> None:
        (self.as_rows if self.rng.random() < 0.65 else self.as_text)(result, scene)

    def _word(self, text: str) -> tuple[int, ...]:
        ids = self.encoder.text(text)
        return (ids[-1],)

    def _object(self, shape: Shape) -> tuple[int, ...]:
        return self._word(shape.color) + self._word(shape.shape) + self._word(shape.position)

    def _letters(self, scene: Scene) -> list[tuple[int, ...]]:
        if scene.text is None or scene.text_row is None:
            return []
        place = self._word(TEXT_ROWS[scene.text_row])
        kind = self._word("number" if scene.text.isdigit() else "word")
        return [self._word(letter) + place + kind for letter in scene.text]

    def _empty(self, scene: Scene) -> tuple[int, ...]:
        """Nothing, or the place of a cell that holds no shape."""
        row, col = self.rng.randrange(3), self.rng.randrange(3)
        if self.rng.random() < 0.6 or any((s.row, s.col) == (row, col) for s in scene.shapes):
            return ()
        return self._word(POSITIONS[row][col])
