"""Acceptance: a model answers held-out questions through the engine, greedily, at most 40 tokens.

`python -m owl_fast.evaluate nano` is the command.
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image
from tqdm import tqdm

from owl_fast import Engine
from recipes.owl_nano import draw, draw_blind
from recipes.owl_nano.dialogues import WEIGHTS, Dialogue, about_pair, ask_about
from recipes.owl_nano.questions import Turn
from recipes.owl_nano.scoring import accuracies, is_right
from recipes.owl_nano.text_tasks import ask_reverse, ask_small_talk, ask_sum, ask_thing
from recipes.owl_nano.world import Scene, sample_scene

DRAWINGS: dict[str, Callable[[Scene, random.Random, int], Image]] = {
    "own": draw.draw,
    "blind": draw_blind.draw,
}
SIZES = draw.SOURCE_SIZES
TASKS = (*WEIGHTS, "compare", "sums", "text")
MAX_TOKENS = 40
BATCH = 16
CONTEXT = 512  # is enough for the longest of them


@dataclass(frozen=True)
class Case:
    """A conversation, its pictures, and the task its last answer counts for."""

    task: str
    dialogue: Dialogue
    pictures: tuple[Image, ...]


def cases(drawing: str, per_task: int, seed: int, bar: bool = False) -> list[Case]:
    """per_task conversations of each task; every scene holds a combination or number never trained."""
    rng = random.Random(f"{seed}-{drawing}")
    found: dict[str, list[Case]] = defaultdict(list)
    with tqdm(total=len(TASKS) * per_task, desc=f"{drawing}, drawing", unit="case", disable=not bar) as done:
        for task in TASKS:
            while len(found[task]) < per_task:
                dialogue = _dialogue(rng, task)
                if dialogue is not None:
                    pictures = tuple(
                        DRAWINGS[drawing](s, rng, rng.choice(draw.SOURCE_SIZES)) for s in dialogue.scenes
                    )
                    found[task].append(Case(task, dialogue, pictures))
                    done.update()
    return [case for task in TASKS for case in found[task]]


def _dialogue(rng: random.Random, task: str) -> Dialogue | None:
    if task == "sums":
        return Dialogue((), (ask_sum(rng),))
    if task == "text":
        return Dialogue((), (rng.choice((ask_reverse, ask_thing, ask_small_talk))(rng),))
    scene = sample_scene(rng, split="heldout")
    if task == "compare":
        return about_pair(rng, scene, sample_scene(rng, split="heldout"), max_questions=1)
    turns = ask_about(rng, scene, task)
    return None if turns is None else Dialogue((scene,), turns)


def messages(case: Case, answers: tuple[str, ...]) -> list[dict[str, Any]]:
    """The conversation up to the question after the given answers, with the drawn pictures."""
    told = case.dialogue.messages(answers)[: 2 * len(answers) + 1]
    if case.pictures:
        parts = [{"type": "image", "image": picture} for picture in case.pictures]
        told[0] = {"role": "user", "content": [*parts, told[0]["content"][-1]]}
    return told


def answer_all(engine: Engine, batch: list[Case]) -> list[tuple[Case, tuple[str, ...]]]:
    """Every turn is asked in order; the model's own answers are the history."""
    answers: list[tuple[str, ...]] = [()] * len(batch)
    for turn in range(max(len(case.dialogue.turns) for case in batch)):
        open_cases = [i for i, case in enumerate(batch) if turn < len(case.dialogue.turns)]
        requests = [{"messages": messages(batch[i], answers[i])} for i in open_cases]
        outputs = engine.generate(requests, temperature=0.0, max_tokens=MAX_TOKENS)
        assert isinstance(outputs, list)
        for i, output in zip(open_cases, outputs, strict=True):
            answers[i] = (*answers[i], output.text)
    return list(zip(batch, answers, strict=True))


def judged(case: Case, answers: tuple[str, ...]) -> list[tuple[str, bool]]:
    """Per turn its task and whether it is right; the turn before a second turn counts for its own task."""
    turns: tuple[Turn, ...] = case.dialogue.turns
    return [(turn.task, is_right(turn, answer)) for turn, answer in zip(turns, answers, strict=True)]


def cases_sha256(found: Iterable[Case]) -> str:
    """Over what is asked, what is wanted and every pixel."""
    digest = hashlib.sha256()
    for case in found:
        digest.update(f"{case.task} {case.dialogue.turns}\n".encode())
        for picture in case.pictures:
            digest.update(f"{picture.size}\n".encode() + picture.tobytes())
    return digest.hexdigest()


def evaluate(
    engine: Engine, drawing: str, found: Sequence[Case], wrong: int = 0, bar: bool = True
) -> dict[str, tuple[float, int]]:
    """Accuracy and number of answers per task; wrong: examples of wrong answers printed per task."""
    results: list[tuple[str, bool]] = []
    shown: dict[str, int] = defaultdict(int)
    with tqdm(total=len(found), desc=drawing, unit="case", disable=not bar) as done:
        for start in range(0, len(found), BATCH):
            batch = list(found[start : start + BATCH])
            for case, answers in answer_all(engine, batch):
                verdicts = judged(case, answers)
                results += verdicts
                for turn, answer, (task, right) in zip(case.dialogue.turns, answers, verdicts, strict=True):
                    if not right and shown[task] < wrong:
                        shown[task] += 1
                        done.write(f"  {task}: {turn.question} -> {answer!r}, wanted {turn.answer!r}")
            done.update(len(batch))
    return accuracies(results)
