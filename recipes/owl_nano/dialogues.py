"""Conversations about one picture, two pictures or none, with the shares of each kind of question."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from recipes.owl_nano.languages import ask_color_abroad
from recipes.owl_nano.questions import ABOUT_ONE_PICTURE, Turn, compare, follow_up
from recipes.owl_nano.text_tasks import ask_text
from recipes.owl_nano.world import Scene, is_unseen, sample_scene

WEIGHTS = {
    "color": 1.0,
    "shape": 1.2,
    "count": 1.8,
    "countof": 1.4,
    "where": 1.2,
    "exist": 1.6,
    "read": 1.4,
    "describe": 2.2,
    "multi": 1.2,
    "languages": 1.0,
}
KINDS = ("picture", "pair", "text")
SHARES = (0.7, 0.18, 0.12)  # of conversations about one picture, two pictures and none
SceneSource = Callable[[], Scene]


@dataclass(frozen=True)
class Dialogue:
    """Scenes in the order of their pictures, and the turns; the first turn follows the pictures."""

    scenes: tuple[Scene, ...]
    turns: tuple[Turn, ...]

    def messages(self, answers: tuple[str, ...] | None = None) -> list[dict[str, Any]]:
        """OpenAI-style messages; an image part holds its scene. answers replace the reference answers."""
        replies = answers if answers is not None else tuple(turn.answer for turn in self.turns)
        messages: list[dict[str, Any]] = []
        for index, turn in enumerate(self.turns):
            content: str | list[dict[str, Any]] = turn.question
            if index == 0 and self.scenes:
                pictures = [{"type": "image", "image": scene} for scene in self.scenes]
                content = [*pictures, {"type": "text", "text": turn.question}]
            messages.append({"role": "user", "content": content})
            if index < len(replies):
                messages.append({"role": "assistant", "content": replies[index]})
        return messages


def crowded(rng: random.Random, scene: Scene) -> Scene:
    """Repeat a shape or a color in the scene: two or three of a kind, and look-alikes, become frequent."""
    if len(scene.shapes) < 2:
        return scene
    shapes = list(scene.shapes)
    model = rng.choice(shapes)
    same_shape = rng.random() < 0.65
    count = rng.randint(1, len(shapes) - 1)
    for index in rng.sample([i for i, s in enumerate(shapes) if s is not model], count):
        old = shapes[index]
        shapes[index] = replace(old, shape=model.shape) if same_shape else replace(old, color=model.color)
    changed = replace(scene, shapes=tuple(shapes))
    return scene if is_unseen(changed) else changed


def training_scene(rng: random.Random, crowded_share: float = 0.3) -> Scene:
    """A scene of the training split, with more texts, more shapes and more repetitions than the world has:
    there the questions are hard."""
    text = rng.random() < 0.6
    counts = (0.12, 0.2, 0.28, 0.4) if text else (0.0, 0.2, 0.3, 0.5)
    scene = sample_scene(rng, n_shapes=rng.choices(range(4), counts)[0], text=text)
    return crowded(rng, scene) if rng.random() < crowded_share else scene


def ask_about(rng: random.Random, scene: Scene, task: str) -> tuple[Turn, ...] | None:
    """The turns of one task (two for "multi"), or None where the scene does not allow it."""
    if task == "multi":
        return follow_up(rng, scene)
    turn = ask_color_abroad(rng, scene) if task == "languages" else ABOUT_ONE_PICTURE[task](rng, scene)
    return None if turn is None else (turn,)


def about_picture(
    rng: random.Random, scene: Scene, max_questions: int = 4, weights: Mapping[str, float] = WEIGHTS
) -> Dialogue:
    """One to max_questions questions about a picture, each of a task drawn by weight."""
    turns: list[Turn] = []
    wanted = rng.randint(1, max_questions)
    while len(turns) < wanted:
        task = rng.choices(tuple(weights), tuple(weights.values()))[0]
        turns.extend(ask_about(rng, scene, task) or ())
    return Dialogue((scene,), tuple(turns))


def about_pair(rng: random.Random, first: Scene, second: Scene, max_questions: int = 4) -> Dialogue:
    turns = tuple(compare(rng, first, second) for _ in range(rng.randint(1, max_questions)))
    return Dialogue((first, second), turns)


def without_picture(rng: random.Random) -> Dialogue:
    return Dialogue((), tuple(ask_text(rng) for _ in range(rng.randint(1, 3))))


def sample_dialogue(
    rng: random.Random,
    scene_source: SceneSource,
    shares: tuple[float, float, float] = SHARES,
    max_questions: int = 4,
    weights: Mapping[str, float] = WEIGHTS,
) -> Dialogue:
    """shares: of conversations about one picture, two pictures and none."""
    kind = rng.choices(KINDS, shares)[0]
    if kind == "picture":
        return about_picture(rng, scene_source(), max_questions, weights)
    if kind == "pair":
        return about_pair(rng, scene_source(), scene_source(), max_questions)
    return without_picture(rng)
