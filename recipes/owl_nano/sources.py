"""Training sources of stages 1 and 2: pictures of the pool with captions, statements and conversations."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from functools import partial

from owl_fast.training.packing import EncodedSample
from owl_fast.training.sources import Source, derive_seed
from recipes.owl_nano.dialogues import SHARES, about_pair, about_picture, without_picture
from recipes.owl_nano.encoding import BOS, EOS, IMAGE_ROWS, Encoded, Encoder, Form
from recipes.owl_nano.pool import Pool
from recipes.owl_nano.statements import statements
from recipes.owl_nano.world import Scene, caption

PICTURES = {"picture": 1, "pair": 2, "text": 0}
COUNT_SHARES = {0: 0.07, 1: 0.31, 2: 0.31, 3: 0.31}  # of pictures with so many shapes in stage 2
Make = Callable[[random.Random], EncodedSample]


def mark_picture(result: Encoded, scene: Scene) -> None:
    """The rows that the abstractor fills."""
    result.add_rows([()] * IMAGE_ROWS)


class PictureSamples:
    """Makes samples from a pool; everything drawn comes from the given random source."""

    def __init__(self, encoder: Encoder, pool: Pool) -> None:
        self.encoder, self.pool = encoder, pool
        self.by_count: dict[int, list[int]] = defaultdict(list)
        for index, scene in enumerate(pool.scenes):
            self.by_count[len(scene.shapes)].append(index)

    def _sample(self, result: Encoded, pictures: list[int]) -> EncodedSample:
        visual = tuple(self.pool.pictures(pictures)) if pictures else ()
        return EncodedSample(result.ids, result.labels, visual)

    def caption(self, rng: random.Random) -> EncodedSample:
        picture = rng.randrange(len(self.pool))
        result = Encoded()
        result.add([BOS])
        mark_picture(result, self.pool.scenes[picture])
        result.add([*self.encoder.text(caption(self.pool.scenes[picture])), EOS], supervised=True)
        return self._sample(result, [picture])

    def statements(self, rng: random.Random) -> EncodedSample:
        picture = rng.randrange(len(self.pool))
        scene = self.pool.scenes[picture]
        result = Encoded()
        result.add([BOS])
        mark_picture(result, scene)
        self.encoder.sentences(result, statements(rng, scene, rng.randint(8, 12)))
        return self._sample(result, [picture])

    def conversation(self, rng: random.Random, kind: str) -> EncodedSample:
        """kind: "picture", "pair" or "text". The pool leans to three shapes; here one, two and three
        are equally frequent."""
        shares = {count: COUNT_SHARES[count] for count in self.by_count}
        counts = rng.choices(tuple(shares), tuple(shares.values()), k=PICTURES[kind])
        pictures = [rng.choice(self.by_count[count]) for count in counts]
        scenes = [self.pool.scenes[i] for i in pictures]
        if kind == "picture":
            dialogue = about_picture(rng, scenes[0], max_questions=6)
        elif kind == "pair":
            dialogue = about_pair(rng, scenes[0], scenes[1])
        else:
            dialogue = without_picture(rng)
        form: Form = "training" if rng.random() < 0.6 else "chat"
        return self._sample(self.encoder.dialogue(dialogue, form, mark_picture), pictures)


def source(name: str, make: Make, seed: int, weight: float) -> Source:
    """An endless source; sample k depends on seed, name and k alone."""

    def get(index: int) -> EncodedSample:
        return make(random.Random(derive_seed(seed, name, index)))

    return Source(name, get, weight)


def stage1_sources(samples: PictureSamples, seed: int) -> list[Source]:
    return [
        source("captions", samples.caption, seed, 0.4),
        source("statements", samples.statements, seed, 0.6),
    ]


def stage2_sources(
    samples: PictureSamples, seed: int, shares: tuple[float, float, float] = SHARES
) -> list[Source]:
    """shares: of conversations about one picture, two pictures and none; a share of 0 leaves the kind out."""
    kinds = zip(("picture", "pair", "text"), shares, strict=True)
    return [source(k, partial(samples.conversation, kind=k), seed, share) for k, share in kinds if share]
