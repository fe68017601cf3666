"""The example programs, run as they are with the bundled model."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from owl_fast import Engine

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(
    name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of an example."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    code = 0
    try:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_embed_in_app(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run("embed_in_app.py", monkeypatch=monkeypatch, capsys=capsys)
    lines = out.splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == ["ada", "ada", "bob", "eve"]
    assert "red" in lines[0]
    assert "yellow" in lines[2]
    assert "Sorry" in lines[3]
    assert "missing.png" in lines[3]
    assert lines[4].startswith("3 answers")


def test_async_use(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run("async_use.py", monkeypatch=monkeypatch, capsys=capsys)
    assert "[color] = The star is red. (stop)" in out
    assert "[where] =" in out
    assert out.endswith("1 answer cut short\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "pictures"
    (target / "inner").mkdir(parents=True)
    for path in sorted(EXAMPLES.glob("*.png")):
        shutil.copyfile(path, target / path.name)
    shutil.copyfile(EXAMPLES / "scene.png", target / "inner/scene.PNG")
    (target / "broken.png").write_bytes(b"\x89PNG nothing more")
    (target / "notes.txt").write_text("no picture")
    return target


def test_caption_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "captions.jsonl"
    arguments = ("caption_folder.py", str(folder), str(out), "--batch", "3", "--max-tokens", "12")
    code, said, noted = run(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert (code, said) == (0, "4 captions written, 0 were there, 1 pictures skipped\n")
    assert "broken.png" in noted
    assert "5/5" in noted
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["image"] for row in rows] == ["inner/scene.PNG", "scene.png", "sign.png", "two.png"]
    assert all(row["caption"] for row in rows)
    assert rows[0]["caption"] == rows[1]["caption"]
    whole = out.read_bytes()

    # An interruption in the middle of a line: the next run takes up from there, and writes the same.
    out.write_bytes(whole[: whole.index(b"sign.png") + 4])
    (folder / "broken.png").unlink()
    code, said, noted = run(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert said == "2 captions written, 2 were there, 0 pictures skipped\n"
    assert out.read_bytes() == whole
    assert "4/4" in noted

    monkeypatch.setattr(Engine, "generate", lambda *a, **k: pytest.fail("nothing was left to do"))
    assert run(*arguments, monkeypatch=monkeypatch, capsys=capsys)[1].startswith("0 captions written, 4 were")


def test_caption_folder_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, noted = run(
        *("caption_folder.py", str(tmp_path), str(tmp_path / "no/out.jsonl"), "--model", str(tmp_path)),
        monkeypatch=monkeypatch,
        capsys=capsys,
    )
    assert (code, len(noted.splitlines())) == (1, 1)
    assert noted.startswith("error: ")
    mine = tmp_path / "mine.txt"
    for precious in ("precious\nnotes", "precious notes", '{"images": []}'):
        mine.write_text(precious)
        code, _, noted = run(
            "caption_folder.py", str(tmp_path), str(mine), monkeypatch=monkeypatch, capsys=capsys
        )
        assert code == 1
        assert "name another file" in noted
        assert mine.read_text() == precious
    code, _, noted = run(
        "caption_folder.py", str(mine), str(tmp_path / "out"), monkeypatch=monkeypatch, capsys=capsys
    )
    assert (code, noted) == (1, f"error: {mine}: no such folder\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("program", ["embed_in_app.py", "async_use.py"])
def test_a_model_that_is_none_is_one_line(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [program, "no/such/model"])
    with pytest.raises(SystemExit, match=r"^error: no/such/model: no such file or folder$"):
        runpy.run_path(str(EXAMPLES / program), run_name="__main__")
