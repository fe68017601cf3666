"""Questions, files of answers and what is odd in them; the real set where it lies beside the checkout."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from owl_fast.errors import DataError
from owl_fast.evaluation.owleval import conversations, picture_path, read_answers, read_questions
from tests.evaluation.small_set import QUESTIONS, answer, small_set, write_lines

REAL = Path(__file__).resolve().parents[3] / "shared" / "owleval"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return small_set(tmp_path / "data")


def test_conversations_are_the_turns_on_one_picture(data: Path) -> None:
    questions = read_questions(data / "questions.jsonl")
    assert [[turn.id for turn in turns] for turns in conversations(questions)] == [[1], [2, 3], [4]]


def test_what_is_odd_is_told_and_counted(data: Path) -> None:
    questions = read_questions(data / "questions.jsonl")
    lines = [answer(1, "one"), answer(1, "again"), answer(9, "?"), answer(2, "无法回溯. ", image="2.png")]
    lines.append({**answer(3, "blue", image="7.jpg"), "question": "Another?"})
    answers = read_answers(write_lines(data / "odd.jsonl", lines), questions)
    assert dict(answers.texts) == {1: "one", 2: "无法回溯. ", 3: "blue"}
    found = (answers.doubled, answers.unknown, answers.renamed, answers.other_picture, answers.reworded)
    assert [list(ids) for ids in found] == [[1], [9], [2], [3], [3]]
    assert (answers.failed, answers.missing(questions)) == ([2], [4])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"question_id": "1"}, "question_id is '1'; wanted a whole number"),
        ({"question_id": True}, "question_id is True"),
        ({"question": 3}, "question is 3; wanted a text"),
        ({"image": "../1.jpg"}, "image is '../1.jpg'; wanted the name of a picture"),
        ({"ability": "a,z"}, "ability is 'a,z'"),
        ({"category": ["both"]}, r"category is \['both'\]"),
    ],
)
def test_bad_questions(data: Path, line: dict[str, object], said: str) -> None:
    path = write_lines(data / "bad.jsonl", [QUESTIONS[0], {**QUESTIONS[1], **line}])
    with pytest.raises(DataError, match=f"bad.jsonl:2: {said}"):
        read_questions(path)


def test_a_question_twice(data: Path) -> None:
    with pytest.raises(DataError, match=r"bad\.jsonl:2: question_id 1 stands there twice"):
        read_questions(write_lines(data / "bad.jsonl", [QUESTIONS[0], QUESTIONS[0]]))


def test_a_picture_may_have_another_ending(data: Path) -> None:
    assert picture_path(data, "2.jpg").name == "2.png"
    with pytest.raises(DataError, match=r"no picture 5\.jpg"):
        picture_path(data, "5.jpg")


def test_two_systems_in_a_file(data: Path) -> None:
    questions = read_questions(data / "questions.jsonl")
    path = write_lines(data / "two.jsonl", [answer(1, "x"), {**answer(2, "y"), "model_id": "other"}])
    with pytest.raises(DataError, match=r"two.jsonl:2: model_id is other, and small before"):
        read_answers(path, questions)


@pytest.mark.skipif(not REAL.is_dir(), reason="OwlEval is not beside the checkout")
def test_the_real_set() -> None:
    questions = read_questions(REAL / "questions.jsonl")
    sets = Counter(name for question in questions for name in question.sets)
    letters = Counter(letter for question in questions for letter in question.abilities)
    assert (len(questions), sets["single_turn"], sets["multi_turn"]) == (82, 50, 52)
    assert letters == {"a": 82, "b": 63, "c": 30, "d": 24, "e": 35, "f": 20}
    turns = conversations(questions)
    assert (len(turns), sum(len(one) > 1 for one in turns), max(map(len, turns))) == (50, 20, 8)
    assert all(picture_path(REAL, question.image or "").is_file() for question in questions)
    failed = {}
    for path in (REAL / "answer").glob("*.jsonl"):
        answers = read_answers(path, questions)
        assert len(answers.texts) == 82
        failed[answers.system] = len(answers.failed)
    assert failed == {
        "MMreact": 14, "BLIP2": 2, "openflanmingo": 8, "llava-13b": 0, "minigpt4_13b": 0, "mPLUG_Owl_7b:v1": 0
    }  # fmt: skip
