"""`evaluate vqa` and `evaluate caption`, end to end with owl-nano."""

from __future__ import annotations

import builtins
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from owl_fast.evaluate.command import main
from tests.evaluation.small_set import small_set, write_lines

Run = Callable[..., int]
COLOR = "What color is the circle?"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return small_set(tmp_path / "set") / "cases"


@pytest.fixture
def vqa(pictures: Path) -> Path:
    """Ten answers on one picture, one on each of two questions about another, which is a conversation."""
    rows = [
        {"image": "1.jpg", "question": COLOR, "answer": text}
        for text in ["The circle is red"] * 2 + ["Red"] * 8
    ]
    talk = {
        "image": "3.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nHow many shapes are there?"},
            {"from": "gpt", "value": "There are three shapes."},
            {"from": "human", "value": "What is 2 + 3?"},
            {"from": "gpt", "value": "5"},
        ],
    }
    write_lines(pictures / "talk.jsonl", [talk])
    return write_lines(pictures / "vqa.jsonl", rows)


@pytest.fixture
def evaluate(tmp_path: Path) -> Run:
    def run(*words: str, out: Path = tmp_path / "out") -> int:
        return main([*words, "--out", str(out), "--device", "cpu", "--plain"])

    return run


def read(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    lines = (path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines], json.loads((path / "scores.json").read_text())


def test_vqa(evaluate: Run, vqa: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    specs = (str(vqa), str(vqa.with_name("talk.jsonl")))
    assert evaluate("vqa", "--data", *specs, "--prompt", "{question}") == 0
    lines, scores = read(tmp_path / "out")
    assert [line["question"] for line in lines] == [COLOR, "How many shapes are there?", "What is 2 + 3?"]
    assert lines[0]["answer"] == "The circle is red."
    assert len(lines[0]["references"]) == 10
    assert [lines[0]["accuracy"], lines[0]["exact"]] == [pytest.approx(0.6), True]
    mean = 100 * sum(line["accuracy"] for line in lines) / 3
    assert scores["scores"]["VQA accuracy"] == pytest.approx(mean)
    assert scores["settings"]["prompt"]["prompt"] == "{question}"
    assert [file["format"] for file in scores["settings"]["data"]["files"]] == ["columns", "llava"]
    assert f"VQA accuracy   {mean:.2f}" in capsys.readouterr().out
    assert str(tmp_path) not in json.dumps(scores)


def test_it_goes_on(evaluate: Run, vqa: Path, pictures: Path, tmp_path: Path, capsys: Any) -> None:
    words = ("vqa", "--data", str(vqa), str(vqa.with_name("talk.jsonl")))
    assert evaluate(*words) == 0
    answers = tmp_path / "out/answers.jsonl"
    whole, scores = answers.read_bytes(), read(tmp_path / "out")[1]["scores"]
    answers.write_bytes(b"".join(whole.splitlines(keepends=True)[1:2]))
    assert evaluate(*words) == 0
    assert (answers.read_bytes(), read(tmp_path / "out")[1]["scores"]) == (whole, scores)
    assert evaluate(*words) == 0
    assert "complete, 3 answers; nothing to do" in capsys.readouterr().out
    assert evaluate(*words, "--limit", "1") == 1
    assert "data.limit was null, now 1" in capsys.readouterr().err
    (pictures / "1.jpg").write_bytes((pictures / "3.jpg").read_bytes())
    assert evaluate(*words) == 1
    assert "answers.jsonl:1: its pictures_sha256 is not that of question 1" in capsys.readouterr().err


def test_caption(evaluate: Run, pictures: Path, tmp_path: Path) -> None:
    """COCO's several captions of a picture are references of one; three pictures, or the first two."""
    said = {
        1: ["A red circle.", "One red disc on white."],
        2: ["A green circle and a blue circle.", "Two circles."],
        3: ["Three circles."],
    }
    files = {1: "1.jpg", 2: "2.png", 3: "3.jpg"}
    coco = {
        "images": [{"id": number, "file_name": name} for number, name in files.items()],
        "annotations": [
            {"id": 10 * number + turn, "image_id": number, "caption": caption}
            for turn in (0, 1)
            for number, captions in said.items()
            for caption in captions[turn : turn + 1]
        ],
    }
    (pictures / "coco.json").write_text(json.dumps(coco))
    words = ("caption", "--data", str(pictures / "coco.json"), "--prompt", "Describe the picture.")
    assert evaluate(*words) == 0
    lines, scores = read(tmp_path / "out")
    assert [line["references"] for line in lines] == list(said.values())
    assert {line["question"] for line in lines} == {"Describe the picture."}
    assert list(scores["scores"]) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "CIDEr-D"]
    assert scores["scores"]["BLEU-1"] > 20
    assert scores["scores"]["CIDEr-D"] == pytest.approx(sum(line["cider"] for line in lines) / 3)
    assert evaluate(*words, "--limit", "2", out=tmp_path / "two") == 0
    assert len(read(tmp_path / "two")[0]) == 2
    assert read(tmp_path / "two")[0][0]["references"] == said[1]


def test_bad_input(
    evaluate: Run,
    vqa: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def error() -> str:
        (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
        return line

    out = tmp_path / "out"
    captions = write_lines(pictures / "captions.jsonl", [{"image": "1.jpg", "caption": "A circle."}])
    questions = write_lines(
        pictures / "only.jsonl", [{"image": "1.jpg", "question_id": 1, "question": COLOR}]
    )
    for words, said in (
        (("vqa", "--data", str(captions)), "captions.jsonl:1: a caption, and no question"),
        (("vqa", "--data", str(questions)), "only.jsonl:1: wanted questions and answers in turn"),
        (("vqa", "--data", f"{vqa}:0.5"), "a weight of 0.5"),
        (("vqa", "--data", str(pictures / "none.jsonl")), "none.jsonl: no such file"),
        (("vqa", "--data", str(vqa), "--prompt", "What?"), "wanted {question} in it"),
        (("caption", "no/such/model", "--data", str(captions)), "no/such/model"),
    ):
        assert evaluate(*words) == 1
        assert said in error()
        assert not out.exists()
    assert evaluate("vqa", "--data", str(vqa), out=captions) == 1
    assert "captions.jsonl: not a folder" in error()
    (pictures / "1.jpg").write_bytes(b"no picture")
    assert evaluate("vqa", "--data", str(vqa)) == 1
    assert "question 1 (" in error()
    assert read(out)[1]["scores"] == {"VQA accuracy": None, "exact match": None}
    take = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("sacrebleu"):
            raise ModuleNotFoundError(name)
        return take(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    for name in [name for name in sys.modules if name.startswith("sacrebleu")]:
        monkeypatch.delitem(sys.modules, name)
    assert evaluate("caption", "--data", str(captions), out=tmp_path / "new") == 1
    assert "pip install -c constraints.txt '.[evaluate]'" in error()
    assert not (tmp_path / "new").exists()
