"""OpenAI's messages: text, parts, pictures by path and data URI."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from owl_fast.errors import DataError, Reason
from tests.training.data_files import open_file, picture_bytes, read_sample, turns, write_lines

ASK, ANSWER = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}


def test_parts_and_pictures(tmp_path: Path) -> None:
    uri = "data:image/png;base64," + base64.b64encode(picture_bytes()).decode()
    words = {"type": "text", "text": "Which one?"}
    parts = [
        {"type": "image_url", "image_url": {"url": uri}},
        {"type": "image", "image": "b.png"},
        {"type": "image_url", "image_url": {"url": "sub/c.png"}},
        words,
    ]
    system = {"role": "system", "content": "Look."}
    path = write_lines(
        tmp_path / "a.jsonl", {"messages": [system, {"role": "user", "content": parts}, ANSWER]}
    )
    sample = read_sample(path)
    pictures = [{"type": "image", "image": number} for number in range(3)]
    assert turns(sample) == [("system", "Look."), ("user", [*pictures, words]), ("assistant", "Hi")]
    assert sample.images == [uri, tmp_path / "b.png", tmp_path / "sub/c.png"]


@pytest.mark.parametrize(
    ("messages", "text", "reason"),
    [
        ([ASK, {"role": "tool", "content": "x"}], "role 'tool'", Reason.WRONG_ROLES),
        ([ASK, {**ANSWER, "weight": 0}], "all answers count alike", Reason.WRONG_KEYS),
        ([ASK, {**ANSWER, "tool_calls": [1]}], "nothing this model learns", Reason.WRONG_KEYS),
        ([ASK, {"role": "assistant", "content": None}], "wanted text or parts", Reason.WRONG_KEYS),
        ([ASK, {"content": "x"}], 'wanted "role"', Reason.WRONG_KEYS),
        ([{"role": "user", "content": [{"type": "sound"}]}, ANSWER], "part 0", Reason.WRONG_ROLES),
        ("hi", "wanted a list", Reason.WRONG_KEYS),
        ([ASK], "no answer", Reason.NO_ANSWER),
    ],
)
def test_bad_rows(messages: object, text: str, reason: Reason, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"messages": [ASK, ANSWER]}, {"messages": messages})
    with pytest.raises(DataError, match=text) as error:
        open_file(path)[1]
    assert str(error.value).startswith(f"{path}:2: ")
    assert error.value.reason is reason
