"""The original's records: messages and pictures of each line, and errors that name file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from owl_fast.errors import DataError
from owl_fast.training.readers.original_jsonl import read_original_jsonl
from tests.golden_data import Golden

RECORDS = Golden("micro").meta("train_data")["records"]
GOOD = {"text": "Human: hello\nAI: hi", "task_type": "x_sft"}


def write(folder: Path, *lines: object) -> Path:
    path = folder / "train.jsonl"
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    return path


def test_records(tmp_path: Path) -> None:
    path = write(tmp_path, RECORDS["two_images"], "", RECORDS["text"])
    two, text = read_original_jsonl(path, image_root="/pictures")
    assert two.images == [Path("/pictures") / name for name in RECORDS["two_images"]["image"]]
    assert [m["role"] for m in two.messages] == ["system", "user", "user", "user", "assistant"]
    assert two.record == f"{path}:1"
    assert list(text.images) == []
    assert text.record == f"{path}:3"
    assert text.messages[-1]["content"] == "She shuddered at the thought of being alone."


def test_pictures_lie_beside_the_file_and_may_be_one_string(tmp_path: Path) -> None:
    path = write(tmp_path, {"image": "a.png", "text": "Human: <image>\nAI: yes"})
    assert next(read_original_jsonl(path)).images == [tmp_path / "a.png"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", 'wanted an object with a string "text"'),
        ({"prompt": "x"}, 'wanted an object with a string "text"'),
        ({**GOOD, "image": [1]}, '"image" must be'),
        ({**GOOD, "image": {"a": 1}}, '"image" must be'),
        ({**GOOD, "image": ["a.png"]}, "1 picture"),
        ({"text": "Human: hello"}, "nothing to learn"),
    ],
)
def test_errors_name_file_and_line(line: object, reason: str, tmp_path: Path) -> None:
    path = write(tmp_path, GOOD, GOOD, line)
    samples = read_original_jsonl(path)
    assert [next(samples).record for _ in range(2)] == [f"{path}:1", f"{path}:2"]
    with pytest.raises(DataError, match=reason) as error:
        next(samples)
    assert str(error.value).startswith(f"{path}:3: ")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl: cannot be read"):
        next(read_original_jsonl(tmp_path / "nowhere.jsonl"))
