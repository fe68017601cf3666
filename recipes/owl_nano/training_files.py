"""The training data of stages 1 and 2 as files: pictures as PNG, rows as JSON lines.

Every row is drawn once, from a seed of its own. Beside each NAME.jsonl lies held-out-NAME.jsonl: a few rows
about pictures of combinations that training never shows.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from owl_fast.training.sources import derive_seed
from recipes.owl_nano.dialogues import Dialogue, about_pair, about_picture, ask_about, without_picture
from recipes.owl_nano.draw import draw, sample_size
from recipes.owl_nano.pool import Pool
from recipes.owl_nano.questions import Turn
from recipes.owl_nano.settings import IMAGE_SIDE
from recipes.owl_nano.world import HELDOUT_PAIRS, Scene, caption, sample_scene

COUNT_SHARES = {0: 0.07, 1: 0.31, 2: 0.31, 3: 0.31}  # of pictures with so many shapes in conversations
# Shares of the questions of stage 1; what each asks for is told in the captions, too.
QUESTIONS = {
    "color": 0.7,
    "shape": 1.0,
    "exist": 1.0,
    "where": 2.2,
    "read": 1.3,
    "countof": 1.3,
    "count": 1.0,
}
HELD_OUT_PICTURES, HELD_OUT_ROWS = 300, 80
NEVER_SHOWN = tuple(" ".join(pair) for pair in HELDOUT_PAIRS)
Row = dict[str, Any]


class Rows:
    """Makes rows about scenes, whose pictures are folder/NUMBER.png; all chance comes from the rng given."""

    def __init__(self, scenes: Sequence[Scene], folder: str) -> None:
        self.scenes, self.folder = scenes, folder
        self.by_count: dict[int, list[int]] = defaultdict(list)
        for number, scene in enumerate(scenes):
            self.by_count[len(scene.shapes)].append(number)

    def captions(self, rng: random.Random) -> Row:
        number = rng.randrange(len(self.scenes))
        return {"image": self._path(number), "caption": caption(self.scenes[number])}

    def questions(self, rng: random.Random) -> Row:
        """Five to nine questions; one whose answer is told already would teach to copy, and is left out."""
        number = rng.randrange(len(self.scenes))
        scene = self.scenes[number]
        told: dict[str, Turn] = {}
        while not told:
            for task in rng.choices(tuple(QUESTIONS), tuple(QUESTIONS.values()), k=rng.randint(5, 9)):
                for turn in ask_about(rng, scene, task) or ():
                    if not _denies_unseen(turn):
                        told.setdefault(turn.question if task == "exist" else turn.answer, turn)
        return self._messages(Dialogue((scene,), tuple(told.values())), [number])

    def picture(self, rng: random.Random) -> Row:
        (number,) = self._numbers(rng, 1)
        dialogue = about_picture(rng, self.scenes[number], max_questions=6)
        while any(map(_denies_unseen, dialogue.turns)):
            dialogue = about_picture(rng, self.scenes[number], max_questions=6)
        return self._messages(dialogue, [number])

    def pair(self, rng: random.Random) -> Row:
        first, second = self._numbers(rng, 2)
        return self._messages(about_pair(rng, self.scenes[first], self.scenes[second]), [first, second])

    def text(self, rng: random.Random) -> Row:
        return self._messages(without_picture(rng), [])

    def _numbers(self, rng: random.Random, count: int) -> list[int]:
        """The pool leans to three shapes; here one, two and three are equally frequent."""
        shares = {shapes: COUNT_SHARES[shapes] for shapes in self.by_count}
        shapes = rng.choices(tuple(shares), tuple(shares.values()), k=count)
        return [rng.choice(self.by_count[number]) for number in shapes]

    def _messages(self, dialogue: Dialogue, numbers: list[int]) -> Row:
        messages = dialogue.messages()
        if numbers:
            question = messages[0]["content"][-1]
            pictures = [{"type": "image", "image": self._path(number)} for number in numbers]
            messages[0]["content"] = [*pictures, question]
        return {"messages": messages}

    def _path(self, number: int) -> str:
        return f"{self.folder}/{number:05d}.png"


def _denies_unseen(turn: Turn) -> bool:
    """Whether it says no to a combination that no training picture shows: that would be the answer every
    time, and be learned."""
    return turn.answer == "No." and any(pair in turn.question for pair in NEVER_SHOWN)


def write_pictures(pictures: Iterable[Image.Image], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        picture.save(folder / f"{number:05d}.png", compress_level=1)


def write_rows(path: Path, make: Callable[[random.Random], Row], count: int, seed: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            row = make(random.Random(derive_seed(seed, path.stem, number)))
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_data(pool: Pool, folder: Path, counts: dict[str, int], seed: int) -> None:
    """folder/NAME.jsonl with so many rows of each kind, which is a method of Rows, and the pictures."""
    write_pictures(
        (Image.fromarray(levels) for shard in pool.pixels for levels in shard), folder / "pictures"
    )
    rng = random.Random(seed)
    unseen = [sample_scene(rng, split="heldout") for _ in range(HELD_OUT_PICTURES)]
    drawn = (draw(scene, rng, sample_size(rng)).resize((IMAGE_SIDE, IMAGE_SIDE), 3) for scene in unseen)
    write_pictures(drawn, folder / "held-out")
    seen, held_out = Rows(pool.scenes, "pictures"), Rows(unseen, "held-out")
    for name, count in counts.items():
        write_rows(folder / f"{name}.jsonl", getattr(seen, name), count, seed)
        write_rows(folder / f"held-out-{name}.jsonl", getattr(held_out, name), HELD_OUT_ROWS, seed)
