"""OwlEval's questions, and answers to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from owl_fast.errors import DataError, Reason
from owl_fast.training import encode_sample
from tests.training.data_files import read_all, turns, write_lines

QUESTION = {"image": "1.jpg", "question_id": 1, "question": "What is funny?", "ability": "a,b"}


def test_questions_and_answers(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "questions.jsonl", QUESTION, {**QUESTION, "answer": "A dog."})
    asked, answered = read_all(path)
    content = [{"type": "image", "image": 0}, {"type": "text", "text": "What is funny?"}]
    assert turns(asked) == [("user", content)]
    assert turns(answered) == [("user", content), ("assistant", "A dog.")]
    assert asked.images == answered.images == [tmp_path / "1.jpg"]


def test_questions_alone_teach_nothing(tmp_path: Path) -> None:
    (asked,) = read_all(write_lines(tmp_path / "questions.jsonl", QUESTION))
    with pytest.raises(DataError, match=r"questions\.jsonl:1: no answer") as error:
        encode_sample(asked, None, 5, 64)
    assert error.value.reason is Reason.NO_ANSWER
