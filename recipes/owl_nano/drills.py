"""Drills for the language model: many small look-ups in one sequence, loss on the looked-up words only.

Scenes of three to eight shapes (more than a picture ever holds) with statements about them in every direction
that the questions use, and key-value pairs of arbitrary tokens queried in both directions, with a copy task.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping

from recipes.owl_nano.dialogues import training_scene
from recipes.owl_nano.encoding import BOS, Encoded, Encoder
from recipes.owl_nano.languages import ask_color_abroad
from recipes.owl_nano.questions import Turn, compare
from recipes.owl_nano.stand_ins import StandIns
from recipes.owl_nano.statements import BUILDERS, statements
from recipes.owl_nano.world import COLOR_NAMES, NUMBERS, SHAPES, WORDS, Scene, Shape


def crowd(rng: random.Random) -> Scene:
    """Three to eight shapes from few enough colors and shapes to repeat, sometimes with a text."""
    with_text = rng.random() < 0.25
    text_row = rng.randrange(3) if with_text else None
    cells = [(row, col) for row in range(3) if row != text_row for col in range(3)]
    chosen = sorted(rng.sample(cells, rng.randint(3, 6 if with_text else 8)))
    kinds = rng.sample(SHAPES, len(SHAPES) if rng.random() < 0.5 else rng.randint(4, 8))
    while True:
        shapes = (
            [rng.choice(kinds) for _ in chosen] if rng.random() < 0.5 else rng.sample(SHAPES, len(chosen))
        )
        if max(shapes.count(s) for s in shapes) <= 3:
            break
    colors = (
        rng.sample(COLOR_NAMES, len(chosen))
        if rng.random() < 0.4
        else rng.choices(COLOR_NAMES, k=len(chosen))
    )
    text = rng.choice(NUMBERS if rng.random() < 0.5 else WORDS) if with_text else None
    return Scene(
        tuple(Shape(c, s, row, col) for c, s, (row, col) in zip(colors, shapes, chosen, strict=True)),
        text,
        text_row,
    )


# What stands on the statements comes when they are there: colors asked for in another language, two pictures.
LATER = ("languages", "compare")


class Curriculum:
    """One direction at a time: a third of the statements are of the first direction that is not yet mastered.

    Each direction is a phase change of its own; all of them at once stay at chance much longer. The others
    are kept in, or they are forgotten within minutes.
    """

    def __init__(self, mastered: float = 0.88) -> None:
        self.mastered = mastered
        self.rates = dict.fromkeys(BUILDERS, 0.0)  # running accuracy per supervised token

    def include(self, directions: Iterable[str]) -> None:
        """Begin with further directions."""
        self.rates |= {d: 0.0 for d in directions if d not in self.rates}

    def weights(self) -> dict[str, float]:
        weights = {direction: 0.3 + 1 - rate for direction, rate in self.rates.items()}
        focus = next((d for d, rate in self.rates.items() if rate < self.mastered), None)
        if focus is not None:
            weights[focus] += 0.5 * sum(weights.values())
        return weights

    def record(self, kinds: list[str], hits: list[bool]) -> None:
        for kind, hit in zip(kinds, hits, strict=True):
            if kind:
                self.rates[kind] += 0.002 * (hit - self.rates[kind])


def drill(rng: random.Random, encoder: Encoder, stand_ins: StandIns, weights: Mapping[str, float]) -> Encoded:
    """Statements about a scene, or questions, by the weights of the directions."""
    later = {kind: weights[kind] for kind in LATER if kind in weights}
    if later and rng.random() * sum(weights.values()) < sum(later.values()):
        kind = rng.choices(tuple(later), tuple(later.values()))[0]
        return question_drill(rng, encoder, stand_ins, kind)
    return scene_drill(rng, encoder, stand_ins, {d: w for d, w in weights.items() if d not in later})


def question_drill(rng: random.Random, encoder: Encoder, stand_ins: StandIns, kind: str) -> Encoded:
    """6 to 10 questions as they stand in conversations, the answer far from the word that it hangs on.

    Only the word that decides an answer is supervised.
    """
    ask: Callable[..., Turn | None] = compare if kind == "compare" else ask_color_abroad
    scenes: list[Scene] = []
    while not scenes or ask(rng, *scenes) is None:
        scenes = [training_scene(rng) for _ in range(2 if kind == "compare" else 1)]
    result = Encoded()
    result.add([BOS])
    for scene in scenes:
        result.add(encoder.text("\nHuman: "))
        stand_ins.either(result, scene)
    for turn in [ask(rng, *scenes) for _ in range(rng.randint(6, 10))]:
        assert turn is not None, "the scenes allow the question"
        result.add(encoder.text(f"\nHuman: {turn.question}\nAI: "))
        for token in encoder.text(turn.answer):
            word = encoder.tokenizer.decode([token]).lower()
            result.add([token], supervised=bool(word) and word in turn.accepted[0], kind=kind)
    return result


def scene_drill(
    rng: random.Random, encoder: Encoder, stand_ins: StandIns, weights: Mapping[str, float]
) -> Encoded:
    """A stand-in for a scene, mostly a crowded one, and 8 to 14 statements about it."""
    scene = crowd(rng) if rng.random() < 0.65 else training_scene(rng)
    result = Encoded()
    result.add([BOS])
    stand_ins.either(result, scene)
    encoder.sentences(result, statements(rng, scene, rng.randint(8, 14), weights))
    return result


def recall_drill(rng: random.Random, vocabulary: tuple[int, ...]) -> Encoded:
    """Pairs "k v k v ...", then the same in another order, each queried by key or by value; or a copy."""
    result = Encoded()
    result.add([BOS])
    count = rng.randint(3, 9)
    tokens = rng.sample(vocabulary, 2 * count)
    pairs = list(zip(tokens[::2], tokens[1::2], strict=True))
    separator, back, again = vocabulary[0], vocabulary[1], vocabulary[2]
    for key, value in pairs:
        result.add([key, value, separator])
    if rng.random() < 0.25:
        result.add([again])
        for key, value in pairs:
            result.add([key, value, separator], supervised=True)
        return result
    for key, value in rng.sample(pairs, count):
        if rng.random() < 0.5:
            result.add([key])
            result.add([value], supervised=True)
        else:
            result.add([back, value])
            result.add([key], supervised=True)
        result.add([separator])
    return result
