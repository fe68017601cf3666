"""What Tab offers in the chat."""

from __future__ import annotations

from pathlib import Path

import pytest

from owl_fast.chat.commands import COMMANDS, offers
from owl_fast.chat.completion import common_start, paths


def test_commands_then_what_they_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b.png").touch()
    complete = offers()
    assert complete("/im") == ("/im", ["/image", "/images"])
    assert complete("/") == ("/", list(COMMANDS))
    assert complete("/image a") == ("a", ["a b.png"])
    assert complete("/set top") == ("top", ["top_k", "top_p"])
    assert complete("/show me") == ("me", ["memory"])
    assert complete("/undo x") == ("x", [])
    assert complete("/nothing x") == ("x", [])
    assert complete("/im\nage") == ("", [])
    assert complete("hello /im") == ("", [])


def test_paths_are_completed_as_they_were_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("photos/[1].png", "photos/[2].png", "photos/.hidden", "phone"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert paths("ph") == ["phone", "photos/"]
    assert paths("photos/") == ["photos/[1].png", "photos/[2].png"]
    assert paths("photos/[2") == ["photos/[2].png"]
    assert paths("photos/.") == ["photos/.hidden"]
    assert paths("none") == paths("\0/") == paths("~\0") == []
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths("~/pho") == ["~/phone", "~/photos/"]
    assert paths("~") == ["~/"]


def test_what_completions_have_in_common() -> None:
    assert common_start(["photo", "phone"]) == "pho"
    assert common_start(["photo", "photos", "phot"]) == "phot"
    assert common_start(["one"]) == "one"
    assert common_start([]) == ""
