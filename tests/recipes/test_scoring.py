from __future__ import annotations

import random

import pytest

from recipes.owl_nano.card import model_card
from recipes.owl_nano.dialogues import sample_dialogue, training_scene
from recipes.owl_nano.questions import Turn, place_of, yes_no
from recipes.owl_nano.scoring import TARGETS, ablation_table, accuracies, is_right
from recipes.owl_nano.world import Shape


def test_every_reference_answer_is_right() -> None:
    rng = random.Random(0)
    for _ in range(1500):
        for turn in sample_dialogue(rng, lambda: training_scene(rng)).turns:
            assert is_right(turn, turn.answer), turn


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("The star is at the top left.", True),
        ("TOP LEFT", True),
        ("The star is at the top.", False),
        ("The star is at the top right.", False),
        ("The star is at the left top", False),
        ("top left or bottom left", False),
        ("", False),
    ],
)
def test_place(answer: str, right: bool) -> None:
    turn = place_of(Shape("red", "star", 0, 0), "Where is the star?")
    assert is_right(turn, answer) is right


def test_words_are_whole_words() -> None:
    assert not is_right(yes_no("exist", "Is there a star?", False), "None.")
    assert is_right(yes_no("exist", "Is there a star?", False), "no")


def test_unspaced_scripts_match_inside() -> None:
    turn = Turn("languages", "", "", ("青色",), ("青", "紫"))
    assert is_right(turn, "青色。")
    assert not is_right(turn, "紫青色")


def test_describe_needs_every_pair() -> None:
    turn = Turn("describe", "", "", (), (), ("red star", "blue moon", "stop"))
    assert is_right(turn, "A red star at the top, a blue moon at the left, the word STOP at the bottom.")
    assert not is_right(turn, "A red star at the top, the word STOP at the bottom.")


def test_accuracies() -> None:
    assert accuracies([("a", True), ("a", False), ("b", True)]) == {"a": (0.5, 2), "b": (1.0, 1)}


def test_model_card_shows_every_task_and_phase() -> None:
    own = dict.fromkeys(TARGETS, (0.5, 100))
    seconds = dict.fromkeys(("warmup", "language", "stage1", "stage2"), 600.0)
    card = model_card(own, own | {"color": (1.0, 300)}, seconds)
    assert all(f"| {task} | 0.500 |" in card for task in TARGETS)
    assert "| all 1300 + 1500 answers | 0.500 | 0.600 | |" in card
    assert card.count("| 10 |") == 4


def test_ablation_table_has_a_column_per_variant() -> None:
    table = ablation_table({"full": {"color": 1.0, "mean": 0.9}, "no stage 1": {"color": 0.25, "mean": 0.2}})
    assert table.splitlines()[0] == "| task | full | no stage 1 |"
    assert "| color | 1.00 | 0.25 |" in table
