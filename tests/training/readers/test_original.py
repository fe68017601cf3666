"""The original's records: messages and pictures of each line, and errors that name file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from owl_fast.errors import DataError, Reason
from tests.golden_data import Golden
from tests.training.data_files import open_file, read_all, read_sample, write_lines

RECORDS = Golden("micro").meta("train_data")["records"]
GOOD = {"text": "Human: hello\nAI: hi", "task_type": "x_sft"}


def test_records(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "train.jsonl", RECORDS["two_images"], "", RECORDS["text"])
    two, text = read_all(path, pictures=Path("/pictures"))
    assert two.images == [Path("/pictures") / name for name in RECORDS["two_images"]["image"]]
    assert [m["role"] for m in two.messages] == ["system", "user", "user", "user", "assistant"]
    assert two.record == f"{path}:1"
    assert list(text.images) == []
    assert text.record == f"{path}:3"
    assert text.messages[-1]["content"] == "She shuddered at the thought of being alone."


def test_pictures_lie_beside_the_file_and_may_be_one_string(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "train.jsonl", {"image": "a.png", "text": "Human: <image>\nAI: yes"})
    assert read_sample(path).images == [tmp_path / "a.png"]


@pytest.mark.parametrize(
    ("line", "text", "reason"),
    [
        ("{", "not JSON", Reason.NOT_JSON),
        ("[" * 100_000, "not JSON", Reason.NOT_JSON),
        ("[1]", "wanted an object", Reason.WRONG_KEYS),
        ({"prompt": "x"}, "no \"text\"; it has 'prompt'", Reason.WRONG_KEYS),
        ({"text": 3}, '"text" is 3; wanted text', Reason.WRONG_KEYS),
        ({**GOOD, "image": [1]}, "a picture is 1", Reason.WRONG_KEYS),
        ({**GOOD, "image": {"a": 1}}, "a picture is None", Reason.WRONG_KEYS),
        ({**GOOD, "image": ["a.png"]}, "1 picture.*0 <image>", Reason.PICTURE_COUNT),
        ({"image": "a", "text": "Human: x\nAI: <image>"}, "inside an answer", Reason.PICTURE_COUNT),
        ({"text": "Human: hello"}, "nothing to learn", Reason.NO_ANSWER),
    ],
)
def test_errors_name_file_line_and_reason(line: object, text: str, reason: Reason, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "train.jsonl", GOOD, GOOD, line)
    dataset = open_file(path)
    assert [dataset[index].record for index in range(2)] == [f"{path}:1", f"{path}:2"]
    with pytest.raises(DataError, match=text) as error:
        dataset[2]
    assert str(error.value).startswith(f"{path}:3: ")
    assert error.value.reason is reason
