"""LLaVA's conversations: lists and lines, one picture, several, none."""

from __future__ import annotations

from pathlib import Path

import pytest

from owl_fast.errors import DataError, Reason
from tests.training.data_files import open_file, read_all, turns, write_lines, write_list

ASKED = {"from": "human", "value": "<image>\nWhat is it?"}
ANSWER = {"from": "gpt", "value": "A boat."}
ROW = {"id": "1", "image": "a.jpg", "conversations": [ASKED, ANSWER]}


@pytest.mark.parametrize("write", [write_lines, write_list])
def test_pictures_stand_where_they_are_marked(write: object, tmp_path: Path) -> None:
    two = {"from": "human", "value": "First <image> then <image>"}
    text_only = {"id": "2", "conversations": [{"from": "human", "value": "Hello"}, ANSWER]}
    path = write(
        tmp_path / "llava.json", text_only, ROW, {"image": ["b.jpg", "c.jpg"], "conversations": [two, ANSWER]}
    )
    text, one, several = read_all(path)
    assert turns(text) == [("user", "Hello"), ("assistant", "A boat.")]
    picture, words = {"type": "image", "image": 0}, {"type": "text", "text": "What is it?"}
    assert turns(one) == [("user", [picture, words]), ("assistant", "A boat.")]
    assert one.images == [tmp_path / "a.jpg"]
    assert [part.get("image", part.get("text")) for part in several.messages[0]["content"]] == [
        *("First", 0, "then", 1)
    ]
    assert several.images == [tmp_path / "b.jpg", tmp_path / "c.jpg"]


@pytest.mark.parametrize(
    ("row", "text", "reason"),
    [
        ({**ROW, "image": None}, "0 picture.*1 <image>", Reason.PICTURE_COUNT),
        ({**ROW, "image": ["a", "b"]}, "2 picture.*1 <image>", Reason.PICTURE_COUNT),
        (
            {**ROW, "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "<image>"}]},
            "turn of the assistant",
            Reason.PICTURE_COUNT,
        ),
        ({**ROW, "conversations": [ASKED]}, "no answer", Reason.NO_ANSWER),
        ({**ROW, "conversations": [ASKED, {"from": "gpt", "value": " "}]}, "no answer", Reason.NO_ANSWER),
        (
            {**ROW, "conversations": [ASKED, {"from": "owl", "value": "?"}]},
            "'owl' speaks",
            Reason.WRONG_ROLES,
        ),
        ({**ROW, "conversations": [ASKED, {"from": "gpt"}]}, 'wanted "from" and "value"', Reason.WRONG_KEYS),
        ({**ROW, "conversations": "hi"}, "wanted a list of turns", Reason.WRONG_KEYS),
        ({**ROW, "image": "../a.jpg"}, "outside the folder of the pictures", Reason.OUTSIDE_ROOT),
        ({**ROW, "image": "/etc/passwd"}, "outside the folder of the pictures", Reason.OUTSIDE_ROOT),
        ({**ROW, "image": "https://example.org/a.jpg"}, "a URL", Reason.MISSING_PICTURE),
    ],
)
def test_bad_rows(row: object, text: str, reason: Reason, tmp_path: Path) -> None:
    path = write_list(tmp_path / "llava.json", ROW, row, indent=1)
    with pytest.raises(DataError, match=text) as error:
        open_file(path)[1]
    line = next(n for n, line in enumerate(path.read_text().splitlines(), start=1) if n > 2 and line == " {")
    assert str(error.value).startswith(f"{path}:{line}: ")
    assert error.value.reason is reason


def test_absolute_paths_below_the_root_are_taken(tmp_path: Path) -> None:
    path = write_list(tmp_path / "llava.json", {**ROW, "image": str(tmp_path / "x/../a.jpg")})
    assert open_file(path)[0].images == [tmp_path / "a.jpg"]
