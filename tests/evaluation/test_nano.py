"""`evaluate nano`: the held-out table, and what it says where the recipe is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from owl_fast.evaluate import nano
from owl_fast.evaluate.command import main


def test_the_table_and_the_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "nano.json"
    words = ["nano", "--device", "cpu", "--plain", "--drawing", "blind", "--per-task", "2", "--out", str(out)]
    assert main(words) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    (color,) = ([cell.strip() for cell in row] for row in rows if row[1].strip() == "color")
    record = json.loads(out.read_text())
    score = record["scores"]["blind"]["color"]
    assert color[2] == f"{score['accuracy']:.3f}"
    assert color[3] == f"{score['low']:.3f} to {score['high']:.3f}"
    assert color[4:6] == [str(score["n"]), "must 0.97"]
    assert score["low"] <= score["accuracy"] <= score["high"] == 1
    assert record["counts"]["questions"] == sum(task["n"] for task in record["scores"]["blind"].values())
    assert set(record["settings"]["data"]["sha256"]) == {"blind"}
    assert main(words) == 1
    assert "nano.json: is there already" in capsys.readouterr().err
    assert main([*words[:-1], str(out / "below.json")]) == 1
    assert "below.json: cannot be written (" in capsys.readouterr().err


def test_without_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nano, "ROOT", tmp_path)
    assert main(["nano"]) == 1
    assert "in the folder of a checkout" in capsys.readouterr().err
