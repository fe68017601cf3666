"""`evaluate owleval`: every answer is kept as it comes, runs go on where they stopped, and mix nothing."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from owl_fast import Engine
from owl_fast.evaluate import asking
from owl_fast.evaluate.command import main
from owl_fast.evaluation.json_lines import LineFile
from owl_fast.evaluation.study import begin_study, open_study
from tests.evaluation.small_set import QUESTIONS, answer, small_set, write_lines
from tests.evaluation.test_owleval import REAL
from tests.serving.waiting import until

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., int]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return small_set(tmp_path / "data")


@pytest.fixture
def owleval(data: Path, tmp_path: Path) -> Run:
    def run(*more: str, data: Path = data, out: Path = tmp_path / "study") -> int:
        return main(["owleval", "--data", str(data), "--out", str(out), "--device", "cpu", "--plain", *more])

    return run


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_answers_are_those_of_a_conversation(owleval: Run, data: Path, tmp_path: Path) -> None:
    assert owleval("--batch", "2") == 0
    written = lines(tmp_path / "study/answers/owl-nano.jsonl")
    assert [list(line) for line in written] == [
        ["image", "question_id", "question", "answer", "model_id"]
    ] * 4
    assert [line["question_id"] for line in written] == [1, 2, 3, 4]
    assert written[0]["answer"] == "The circle is red."
    chat = Engine.from_pretrained(device="cpu").chat(max_tokens=512)
    two = data / "cases" / "2.png"
    assert written[1]["answer"] == chat(QUESTIONS[1]["question"], images=[two]).text
    assert written[2]["answer"] == chat(QUESTIONS[2]["question"]).text
    study = open_study(tmp_path / "study")
    assert study.answers["owl-nano"].missing(study.questions) == []


def test_the_record(owleval: Run, data: Path, tmp_path: Path) -> None:
    assert owleval("--system", "You look at drawings.", "--name", "mine") == 0
    text = (tmp_path / "study/records/mine.json").read_text()
    record = json.loads(text)
    assert record["counts"] == {"questions": 4, "answered": 4, "missing": 0}
    assert record["settings"]["prompt"]["template"] == (
        "You look at drawings.\nHuman: <image>\nHuman: {question}\nAI: "
    )
    assert record["settings"]["decoding"]["max_tokens"] == 512
    assert set(record["settings"]["data"]["pictures"]) == {"1.jpg", "2.jpg", "3.jpg"}
    assert [len(record["settings"]["model"]["weights_sha256"]), record["system"]] == [64, "mine"]
    (run,) = record["runs"]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    assert run["commit"] == (commit.stdout.strip() or None)
    assert (run["device"], run["answered"], run["precision"]) == ("cpu", 4, "fp32")
    assert str(tmp_path) not in text
    assert str(ROOT) not in text


def test_texts_alone(owleval: Run, tmp_path: Path) -> None:
    data = tmp_path / "texts"
    data.mkdir()
    write_lines(data / "questions.jsonl", [{"question_id": 81, "text": "What is 2 + 3?", "category": "math"}])
    assert owleval(data=data) == 0
    (line,) = lines(tmp_path / "study/answers/owl-nano.jsonl")
    assert line == {
        "question_id": 81, "question": "What is 2 + 3?", "answer": line["answer"], "model_id": "owl-nano"
    }  # fmt: skip
    assert "5" in line["answer"]


def test_complete_is_said_and_nothing_done(
    owleval: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert owleval() == 0
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.json*")}
    monkeypatch.setattr(asking, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    assert owleval() == 0
    assert "complete, 4 answers; nothing to do" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json*")} == files


@pytest.mark.parametrize("kept", [(4,), (2,), (1, 2, 4)])
def test_it_goes_on_with_what_is_missing(owleval: Run, tmp_path: Path, kept: tuple[int, ...]) -> None:
    """A conversation that was begun too; the file is the same in the end."""
    path = tmp_path / "study/answers/owl-nano.jsonl"
    assert owleval() == 0
    whole = path.read_bytes()
    found = [line for line in lines(path) if line["question_id"] in kept]
    write_lines(path, reversed(found))  # in the order in which they happened to come
    path.write_bytes(path.read_bytes() + b'{"image": "1.j')
    assert owleval() == 0
    assert path.read_bytes() == whole
    record = json.loads((tmp_path / "study/records/owl-nano.json").read_text())
    assert [run["answered"] for run in record["runs"]] == [4, 4 - len(kept)]


def test_answers_of_earlier_are_the_history(owleval: Run, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "study/answers/owl-nano.jsonl"
    assert owleval() == 0
    other = [{**line, "answer": "A red heart."} if line["question_id"] == 2 else line for line in lines(path)]
    write_lines(path, [line for line in other if line["question_id"] != 3])
    assert owleval() == 0
    chat = Engine.from_pretrained(device="cpu").chat(max_tokens=512)
    chat(QUESTIONS[1]["question"], images=[data / "cases" / "2.png"])
    chat.history[-1]["content"] = "A red heart."
    assert lines(path)[2]["answer"] == chat(QUESTIONS[2]["question"]).text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--temperature", "0.7"], "decoding.temperature was 0.0, now 0.7"),
        (["--system", "Be brief."], "prompt.template was"),
        (["--quant", "int8"], 'model.quant was "auto", now "int8"'),
        (None, "model.weights_sha256 was 44ea"),
    ],
)
def test_other_settings_are_refused(
    owleval: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str] | None, said: str
) -> None:
    if change is None:  # in float32 they are other weights
        change = [str(tmp_path / "other")]
        Engine.from_pretrained(device="cpu").save_pretrained(change[0])
    path = tmp_path / "study/answers/mine.jsonl"
    assert owleval("--name", "mine") == 0
    before = path.read_bytes()
    assert owleval("--name", "mine", *change) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert "mine.json: the answers there were made otherwise" in error
    assert said in error
    assert path.read_bytes() == before


def test_other_data_is_refused(
    owleval: Run, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert owleval() == 0
    (data / "cases" / "1.jpg").write_bytes((data / "cases" / "3.jpg").read_bytes())
    assert owleval() == 1
    assert "data.pictures.1.jpg was" in capsys.readouterr().err
    write_lines(data / "questions.jsonl", QUESTIONS[:3])
    assert owleval() == 1
    assert "not the questions of" in capsys.readouterr().err


def test_a_picture_that_cannot_be_read_costs_its_questions(
    owleval: Run, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = (data / "cases" / "2.png").read_bytes()
    (data / "cases" / "2.png").write_bytes(good[:60])
    (data / "cases" / "3.jpg").rename(data / "cases" / "three.jpg")
    assert owleval() == 1
    shown = capsys.readouterr()
    errors = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert any(line.startswith("error: question 2: ") and "question 3" in line for line in errors)
    assert any(line.startswith("error: question 4: ") and "no picture 3.jpg" in line for line in errors)
    assert "missing: question 2, question 3, question 4" in shown.err
    record = json.loads((tmp_path / "study/records/owl-nano.json").read_text())
    assert record["counts"] == {"questions": 4, "answered": 1, "missing": 3}
    (data / "cases" / "2.png").write_bytes(good)
    (data / "cases" / "three.jpg").rename(data / "cases" / "3.jpg")
    assert owleval() == 0
    assert [line["question_id"] for line in lines(tmp_path / "study/answers/owl-nano.jsonl")] == [1, 2, 3, 4]


def test_a_conversation_that_does_not_fit(
    owleval: Run, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = [*QUESTIONS[:2], {**QUESTIONS[2], "question": "And why? " * 2000}, QUESTIONS[3]]
    write_lines(data / "questions.jsonl", long)
    assert owleval() == 1
    assert "error: question 3: the prompt takes " in capsys.readouterr().err
    assert [line["question_id"] for line in lines(tmp_path / "study/answers/owl-nano.jsonl")] == [1, 2, 4]


def test_longer_than_is_left_is_no_error(owleval: Run) -> None:
    assert owleval("--max-tokens", "2040") == 0


def test_bad_input(owleval: Run, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error() -> str:
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        return line

    assert owleval(data=tmp_path / "nowhere") == 1
    assert "nowhere: no questions.jsonl there" in error()
    assert owleval("no/such/model") == 1
    assert "no/such/model" in error()
    assert not (tmp_path / "study").exists()
    (tmp_path / "file").write_text("")
    assert owleval(out=tmp_path / "file") == 1
    assert f"{tmp_path}/file: no study can be here" in error()
    assert owleval(out=tmp_path / "file" / "below") == 1
    assert "no study can be here" in error()
    with pytest.raises(SystemExit) as left:
        owleval("--temperature", "-1")
    assert left.value.code == 2


def test_without_cases(owleval: Run, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "cases").rename(data / "pictures")
    assert owleval() == 1
    shown = capsys.readouterr().err
    assert shown.count("with cases/ in it") == 3


def test_answers_without_a_record(
    owleval: Run, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin_study(tmp_path / "study", data)
    (tmp_path / "study/answers").mkdir()
    write_lines(tmp_path / "study/answers/small.jsonl", [answer(1, "red")])
    assert owleval("--name", "small") == 1
    assert "answers are there, and no small.json" in capsys.readouterr().err


def test_one_process_at_a_time(
    owleval: Run, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin_study(tmp_path / "study", data)
    with LineFile(tmp_path / "study/answers/owl-nano.jsonl"):
        assert owleval() == 6
    assert "another process writes it" in capsys.readouterr().err
    assert owleval() == 0


def test_disk_full(
    owleval: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    append = LineFile.append
    room = [2]

    def full(file: LineFile, value: dict[str, Any]) -> None:
        with monkeypatch.context() as patch:
            if not room[0]:

                def no_room(*_: Any) -> int:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

                patch.setattr(os, "pwrite", no_room)
            append(file, value)
            room[0] -= 1

    monkeypatch.setattr(LineFile, "append", full)
    assert owleval() == 3
    assert "answers/owl-nano.jsonl: cannot be written (No space left on device)" in capsys.readouterr().err
    assert len(lines(tmp_path / "study/answers/owl-nano.jsonl")) == 2
    monkeypatch.undo()
    assert owleval() == 0


def test_stopped_in_the_middle(tmp_path: Path) -> None:
    """By Ctrl-C, then killed; the file is that of a run that nobody disturbed."""
    data = small_set(tmp_path / "data")
    many = [
        {**question, "question_id": 4 * n + place + 1}
        for n in range(25)
        for place, question in enumerate(QUESTIONS)
    ]
    write_lines(data / "questions.jsonl", many)
    words = ["owleval", "--data", str(data), "--device", "cpu", "--batch", "4", "--plain", "--out"]
    path = tmp_path / "stopped/answers/owl-nano.jsonl"
    command = [sys.executable, "-m", "owl_fast.evaluate", *words, str(tmp_path / "stopped")]
    kept = 0
    for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            more = kept + 5
            until(lambda: path.is_file() and path.read_bytes().count(b"\n") >= more)  # noqa: B023
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
        assert process.returncode == code
        kept = path.read_bytes().count(b"\n")
        assert more <= kept < len(many)
        assert code != 130 or f"stopped; {kept} answers are kept" in said
    assert main([*words, str(tmp_path / "stopped")]) == 0
    assert main([*words, str(tmp_path / "whole")]) == 0
    assert path.read_bytes() == (tmp_path / "whole/answers/owl-nano.jsonl").read_bytes()


@pytest.mark.skipif(not REAL.is_dir(), reason="OwlEval is not beside the checkout")
def test_the_real_set(owleval: Run, tmp_path: Path) -> None:
    assert owleval(data=REAL) == 0
    study = open_study(tmp_path / "study", [REAL / "answer"])
    assert (len(study.answers), study.answers["owl-nano"].missing(study.questions)) == (7, [])
