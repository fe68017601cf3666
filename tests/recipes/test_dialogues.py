from __future__ import annotations

import random
from collections import Counter

import pytest

from recipes.owl_nano.dialogues import (
    WEIGHTS,
    about_pair,
    ask_about,
    crowded,
    sample_dialogue,
    training_scene,
)
from recipes.owl_nano.languages import COLORS_IN, SHAPES_IN
from recipes.owl_nano.questions import ABOUT_ONE_PICTURE, absent_pair, ask_countof, ask_exist, follow_up
from recipes.owl_nano.statements import BUILDERS, statements
from recipes.owl_nano.world import COLOR_NAMES, SHAPES, Scene, Shape, is_unseen, sample_scene

SCENE = Scene((Shape("red", "star", 0, 0), Shape("blue", "moon", 1, 1), Shape("blue", "star", 2, 2)))


def share(task: str, word: str, count: int = 600) -> float:
    rng = random.Random(1)
    turns = (ABOUT_ONE_PICTURE[task](rng, training_scene(rng)) for _ in range(count))
    answers = [turn.answer for turn in turns if turn is not None]
    return sum(word in answer for answer in answers) / len(answers)


def test_same_seed_same_dialogues() -> None:
    def draw(seed: int) -> list[object]:
        rng = random.Random(seed)
        return [sample_dialogue(rng, lambda: training_scene(rng)) for _ in range(50)]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_exist_is_balanced() -> None:
    assert 0.42 < share("exist", "Yes") < 0.58


def test_countof_reaches_every_number() -> None:
    rng = random.Random(2)
    answers = Counter(ask_countof(rng, training_scene(rng)).answer.split()[2] for _ in range(800))
    assert all(answers[number] > 60 for number in ("no", "one", "two"))
    assert answers["three"] > 15


def test_compare_is_balanced() -> None:
    rng = random.Random(2)
    answers = Counter(
        turn.answer
        for _ in range(600)
        for turn in about_pair(rng, sample_scene(rng), sample_scene(rng)).turns
    )
    assert 0.8 < answers["The first picture."] / answers["The second picture."] < 1.25
    assert 0.5 < answers["Yes."] / answers["No."] < 1.3


def test_absent_pairs_are_absent_and_often_made_of_what_is_there() -> None:
    rng = random.Random(0)
    present = {(s.color, s.shape) for s in SCENE.shapes}
    pairs = [absent_pair(rng, SCENE) for _ in range(300)]
    assert not present & set(pairs)
    assert sum(pair == ("red", "moon") for pair in pairs) > 100


@pytest.mark.parametrize("task", ["color", "where"])
def test_only_unique_shapes_are_asked_for(task: str) -> None:
    rng = random.Random(0)
    for _ in range(50):
        turns = ask_about(rng, SCENE, task)
        assert turns is not None
        assert "moon" in turns[0].question


def test_no_unique_shape_no_question() -> None:
    twins = Scene((Shape("red", "star", 0, 0), Shape("blue", "star", 1, 1)))
    rng = random.Random(0)
    assert ask_about(rng, twins, "color") is None
    assert follow_up(rng, twins) is None


def test_second_turn_is_about_the_first() -> None:
    rng = random.Random(0)
    for _ in range(100):
        pair = follow_up(rng, SCENE)
        assert pair is not None
        first, second = pair
        assert second.task == "multi"
        assert "moon" in first.question or "moon" in first.answer
        assert "blue" in second.answer or "center" in second.answer


def test_crowded_scenes_stay_in_the_training_split() -> None:
    rng = random.Random(0)
    for _ in range(300):
        scene = crowded(rng, sample_scene(rng, n_shapes=3, text=False))
        assert not is_unseen(scene)


def test_messages_carry_pictures_first() -> None:
    rng = random.Random(5)
    pair = about_pair(rng, SCENE, sample_scene(rng))
    first = pair.messages()[0]
    assert [part["type"] for part in first["content"]] == ["image", "image", "text"]
    assert len(pair.messages(answers=())) == len(pair.turns)


def test_every_task_occurs() -> None:
    rng = random.Random(0)
    tasks = Counter(
        turn.task for _ in range(1500) for turn in sample_dialogue(rng, lambda: training_scene(rng)).turns
    )
    assert set(tasks) == {*WEIGHTS, "compare", "sums", "text"}


@pytest.mark.parametrize("code", COLORS_IN)
def test_other_languages_name_everything(code: str) -> None:
    assert len(set(COLORS_IN[code])) == len(COLOR_NAMES)
    assert len(set(SHAPES_IN[code])) == len(SHAPES)


def test_statements_mark_what_the_picture_decides() -> None:
    rng = random.Random(0)
    for direction, sentence in statements(rng, SCENE, 200):
        decided = [text for text, marked in sentence if marked]
        assert direction in BUILDERS
        assert len(decided) == 1
        if direction == "color":
            assert decided == ["blue"]


def test_exist_with_a_shape_alone_is_about_that_shape() -> None:
    rng = random.Random(0)
    for _ in range(200):
        turn = ask_exist(rng, SCENE)
        if not any(color in turn.question for color in COLOR_NAMES):
            named = next(name for name in SHAPES if f" {name}?" in turn.question)
            assert (named in {"star", "moon"}) == (turn.answer == "Yes.")
