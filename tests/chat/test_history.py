"""The file of what was typed."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from owl_fast.chat.history import LIMIT, History, default_path


def never(text: str) -> None:
    raise AssertionError(text)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_entries_are_kept_for_their_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "history"
    old = os.umask(0)
    try:
        history = History(path, never)
    finally:
        os.umask(old)
    for entry in ("one", "two\nlines \ud800", "two\nlines \ud800", "  ", "three"):
        history.add(entry)
    assert (mode(path), mode(path.parent)) == (0o600, 0o700)
    assert History(path, never).entries == ["one", "two\nlines \ud800", "three"]


def test_rights_that_are_too_wide_are_narrowed(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_text('"old"\nbroken line\n[1]\n"cut of', encoding="utf-8")
    path.chmod(0o644)
    assert History(path, never).entries == ["old"]
    assert mode(path) == 0o600


def test_two_chats_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "history"
    first, second = History(path, never), History(path, never)
    first.add("a")
    second.add("b")
    assert History(path, never).entries == ["a", "b"]


def test_a_long_file_is_shortened(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_text("".join(json.dumps(str(number)) + "\n" for number in range(2 * LIMIT + 1)))
    assert len(History(path, never).entries) == LIMIT
    assert History(path, never).entries[-1] == str(2 * LIMIT)
    assert [entry.name for entry in tmp_path.iterdir()] == ["history"]
    assert mode(path) == 0o600


def test_nothing_is_written_when_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_path() == tmp_path / "owl_fast" / "history"
    history = History(None, never)
    history.add("secret")
    assert history.entries == ["secret"]
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said: list[str] = []
    history = History(tmp_path / "file" / "history", said.append)
    history.add("one")
    history.add("two")
    assert len(said) == 1
    assert history.entries == ["one", "two"]
