"""Baize: turns in one string, its header, and the empty turn at its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from owl_fast.errors import DataError, Reason
from tests.training.data_files import open_file, read_all, turns, write_list

TALK = "[|Human|] Hello!\n[|AI|] Hi.\nHow are you?\n[|Human|] "


def test_turns(tmp_path: Path) -> None:
    headed = {"topic": "t", "input": f"The conversation between human and AI assistant.\n{TALK}"}
    path = write_list(tmp_path / "a.json", headed, {"topic": "t", "input": f"Be kind.\n{TALK}Fine."})
    plain, own = read_all(path)
    said = [("user", "Hello!"), ("assistant", "Hi.\nHow are you?")]
    assert turns(plain) == said
    assert turns(own) == [("system", "Be kind."), *said, ("user", "Fine.")]


@pytest.mark.parametrize(
    ("text", "reason"), [("hello", Reason.WRONG_KEYS), ("[|Human|] hello", Reason.NO_ANSWER)]
)
def test_bad_rows(text: str, reason: Reason, tmp_path: Path) -> None:
    path = write_list(tmp_path / "a.json", {"input": TALK}, {"input": text})
    with pytest.raises(DataError) as error:
        open_file(path)[1]
    assert error.value.reason is reason
