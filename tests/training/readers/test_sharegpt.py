"""ShareGPT: text only, several names for the speakers, a system turn."""

from __future__ import annotations

from pathlib import Path

import pytest

from owl_fast.errors import DataError, Reason
from tests.training.data_files import open_file, read_sample, turns, write_list

HUMAN, GPT = {"from": "human", "value": "An <image> tag?"}, {"from": "gpt", "value": "HTML's is <img>."}


def test_a_conversation(tmp_path: Path) -> None:
    system = {"from": "system", "value": "Be brief."}
    path = write_list(tmp_path / "a.json", {"id": "x", "conversations": [system, HUMAN, GPT]})
    sample = read_sample(path)
    assert turns(sample) == [("system", "Be brief."), ("user", HUMAN["value"]), ("assistant", GPT["value"])]
    assert list(sample.images) == []


@pytest.mark.parametrize(
    ("row", "text", "reason"),
    [
        ({"conversations": [HUMAN, GPT], "image": "a.jpg"}, "--format llava", Reason.WRONG_KEYS),
        (
            {"conversations": [HUMAN, GPT, {"from": "system", "value": "x"}]},
            "after the first",
            Reason.WRONG_ROLES,
        ),
        ({"conversations": []}, "no answer", Reason.NO_ANSWER),
        ({"conversations": [HUMAN]}, "no answer", Reason.NO_ANSWER),
    ],
)
def test_bad_rows(row: object, text: str, reason: Reason, tmp_path: Path) -> None:
    path = write_list(tmp_path / "a.json", {"conversations": [HUMAN, GPT]}, row)
    with pytest.raises(DataError, match=text) as error:
        open_file(path, format="sharegpt")[1]
    assert error.value.reason is reason
