"""The rating server: nobody learns whose an answer is, and what it says is saved is on disk."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from owl_fast.evaluate.command import main
from owl_fast.evaluation.json_lines import LineFile
from owl_fast.evaluation.ratings import Rating, read_ratings
from owl_fast.evaluation.study import Study
from tests.evaluation.rating_server import ANSWERS, HOSTILE, SYSTEMS, Desk, rating, small_study
from tests.evaluation.small_set import write_lines


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return small_study(tmp_path)


@pytest.fixture
def desk(study: Study) -> Iterator[Desk]:
    with rating(study) as running:
        yield running


# --- blind ---


def test_no_system_is_named_anywhere(desk: Desk) -> None:
    one = desk.questions()[0]
    replies = [desk.client.get(path) for path in ("/raters", "/", "/main.js", "/sheet.js")]
    replies += [desk.post("/open", rater="ann")]
    replies += [desk.post("/rate", rater="ann", question=1, answer=one["answers"][0]["id"], grade="A")]
    assert [reply.status_code for reply in replies] == [200] * 6
    for reply in replies:
        assert not re.search("secret|alpha|beta|gamma", reply.text + str(reply.headers))


def test_the_order_is_another_for_each_rater_and_question_and_stays(desk: Desk) -> None:
    def orders(rater: str) -> list[list[str]]:
        return [[one["text"] for one in question["answers"]] for question in desk.questions(rater)]

    assert orders("ann") == orders("ann")
    seen = {tuple(SYSTEMS_BY_TEXT[text] for text in order) for n in range(8) for order in orders(f"r{n}")[:2]}
    assert len(seen) >= 4  # of six


SYSTEMS_BY_TEXT = {text.strip(): name for name, texts in SYSTEMS.items() for text in texts}


def test_what_a_rater_sees(desk: Desk) -> None:
    questions = desk.questions()
    assert [question["id"] for question in questions] == [1, 2, 3, 4]
    assert [len(question["answers"]) for question in questions] == [3, 3, 3, 2]  # a missing one is not shown
    by_text = {one["text"]: one for question in questions for one in question["answers"]}
    assert sorted(by_text["无法回溯"]) == ["earlier", "failed", "grade", "id", "shown", "text"]
    assert {text for text, one in by_text.items() if one["failed"]} == {"", "无法回溯"}
    assert "a ball" in by_text  # without the space it began with
    assert by_text["green"]["earlier"] == [{"question": "What is on the left?", "answer": "a ball"}]
    assert by_text[HOSTILE]["earlier"] == [{"question": "What is on the left?", "answer": "a square"}]
    assert by_text["red"]["earlier"] == []
    about = desk.client.get("/raters").json()
    assert (about["rater"], about["raters"], about["questions"], about["answers"]) == (None, [], 4, ANSWERS)
    assert about["report"].startswith("python -m owl_fast.evaluate owleval report ")


# --- saved at once ---


def test_a_change_is_on_disk_when_the_reply_is_there(desk: Desk) -> None:
    question = desk.questions()[0]
    one = question["answers"][1]
    system = SYSTEMS_BY_TEXT[one["text"]]
    sent = {"rater": "ann", "question": 1, "answer": one["id"]}
    assert desk.post("/rate", **sent, shown=["b", "a"]).json() == {"grade": "", "shown": ["a", "b"]}
    assert read_ratings(desk.study.folder) == []  # ticks alone are no rating
    assert desk.post("/rate", **sent, grade="B").json() == {"grade": "B", "shown": ["a", "b"]}
    assert read_ratings(desk.study.folder) == [
        Rating("ann", 1, system, "B", "ab", digest=desk.study.answers[system].digest(1))
    ]
    desk.post("/rate", **sent, grade="B")
    assert len(desk.lines()) == 2  # nothing new, no line
    assert desk.questions()[0]["answers"][1] | one == one | {"grade": "", "shown": []}
    assert desk.questions()[0]["answers"][1]["grade"] == "B"
    assert desk.client.get("/raters").json()["raters"] == [{"name": "ann", "rated": 1}]
    assert desk.post("/rate", **sent, grade="", shown=[]).json() == {"grade": "", "shown": []}
    assert read_ratings(desk.study.folder) == []


def test_another_process_goes_on_where_one_ended(study: Study) -> None:
    with rating(study) as desk:
        ids = [question["answers"][0]["id"] for question in desk.questions()]
        for number, mask in enumerate(ids[:2], start=1):
            desk.post("/rate", rater="ann", question=number, answer=mask, grade="C", shown=["a"])
    with rating(study) as desk:
        assert [one["answers"][0]["id"] for one in desk.questions()] == ids
        assert [one["answers"][0]["grade"] for one in desk.questions()] == ["C", "C", "", ""]
        assert [one["answers"][0]["grade"] for one in desk.questions("bob")] == [""] * 4
        desk.post("/rate", rater="ann", question=1, answer=ids[0], grade="A")
        assert [one["answers"][0]["grade"] for one in desk.questions()] == ["A", "C", "", ""]
        assert desk.questions()[0]["answers"][0]["shown"] == ["a"]


def test_many_at_once(desk: Desk) -> None:
    """Tabs of two raters: every change is a whole line, and the last one counts."""
    sheets = {rater: desk.questions(rater) for rater in ("ann", "bob")}

    def rate(job: tuple[str, dict[str, Any], str, str]) -> int:
        rater, question, mask, grade = job
        return desk.post("/rate", rater=rater, question=question["id"], answer=mask, grade=grade).status_code

    jobs = [
        (rater, question, one["id"], grade)
        for grade in "ABCD"
        for rater, questions in sheets.items()
        for question in questions
        for one in question["answers"]
    ]
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(rate, jobs)) == {200}
    assert len(read_ratings(desk.study.folder)) == 2 * ANSWERS
    for rater in sheets:
        graded = {(line["question_id"], line["system"]): line["grade"] for line in desk.lines(rater)}
        shown = desk.questions(rater)
        assert len(graded) == ANSWERS
        assert sorted(graded.values()) == sorted(one["grade"] for q in shown for one in q["answers"])


def test_a_rater_in_two_processes(study: Study) -> None:
    with LineFile(study.folder / "ratings" / "ann.jsonl"), rating(study) as desk:
        reply = desk.post("/open", rater="ann")
        assert reply.status_code == 409
        assert "ann.jsonl: another process writes it" in reply.json()["error"]["message"]
        assert desk.post("/open", rater="bob").status_code == 200
    with rating(study) as desk:
        assert desk.post("/open", rater="ann").status_code == 200


def test_a_full_disk_is_told_and_nothing_is_saved(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = {"rater": "ann", "question": 1, "answer": desk.questions()[0]["answers"][0]["id"]}
    desk.post("/rate", **sent, grade="A")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        reply = desk.post("/rate", **sent, grade="B")
    assert reply.status_code == 507
    assert reply.json()["error"]["message"].endswith("ann.jsonl: cannot be written (No space left on device)")
    assert desk.questions()[0]["answers"][0]["grade"] == "A"
    assert [line["grade"] for line in desk.lines()] == ["A"]
    assert desk.post("/rate", **sent, grade="B").status_code == 200
    assert [line["grade"] for line in desk.lines()] == ["A", "B"]


# --- what is refused ---


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"grade": "E"}, 400, "wanted a grade of A, B, C, D"),
        ({"grade": 1}, 400, "wanted a grade"),
        ({"shown": ["c"]}, 400, "letters of the abilities this question asks for"),
        ({"shown": "ab"}, 400, "wanted a list"),
        ({}, 400, "wanted a grade, or the letters"),
        ({"question": 99, "grade": "A"}, 404, "no such question"),
        ({"question": "1", "grade": "A"}, 404, "no such question"),
        ({"answer": "secret-alpha", "grade": "A"}, 404, "no such answer"),
        ({"rater": " ", "grade": "A"}, 400, "wanted the rater's name"),
        ({"rater": "x" * 61, "grade": "A"}, 400, "at most 60 letters"),
        ({"rater": "judge gpt", "grade": "A"}, 400, "as those of models do"),
        ({"system": "one", "grade": "A"}, 400, "wanted a JSON object of answer, grade"),
    ],
)
def test_bad_requests(desk: Desk, change: dict[str, Any], status: int, said: str) -> None:
    sent = {"rater": "ann", "question": 1, "answer": desk.questions()[0]["answers"][0]["id"], **change}
    reply = desk.post("/rate", **sent)
    assert (reply.status_code, said in reply.json()["error"]["message"]) == (status, True), reply.text
    assert desk.lines() == []


def test_what_is_no_json(desk: Desk) -> None:
    post = desk.client.post
    assert post("/rate", content=b"{", headers={"content-type": "application/json"}).status_code == 400
    assert post("/rate", content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    assert post("/rate", content=b"[]", headers={"content-type": "application/json"}).status_code == 400
    assert post("/raters", json={}).status_code == 405


def test_strangers_are_refused(desk: Desk) -> None:
    port = desk.client.base_url.port
    for headers, status in (
        ({"Host": f"evil.example:{port}"}, 421),
        ({"Host": "127.0.0.1:1"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": desk.origin}, 200),
    ):
        assert desk.client.post("/open", json={"rater": "ann"}, headers=headers).status_code == status
    assert desk.client.get("/pictures/1", headers={"Host": "evil.example"}).status_code == 421
    page = desk.client.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"


def test_pictures_and_nothing_else(desk: Desk) -> None:
    data = desk.study.data / "cases"
    for number, name, kind in ((1, "1.jpg", "jpeg"), (2, "2.png", "png")):  # the second is called .jpg
        reply = desk.client.get(f"/pictures/{number}")
        assert reply.content == (data / name).read_bytes()
        assert reply.headers["content-type"] == f"image/{kind}"
    paths = ("9", "1.jpg", "../questions.jsonl", "..%2fquestions.jsonl", "%2e%2e/study.json", "-1", "")
    for path in paths:
        with socket.create_connection(("127.0.0.1", desk.client.base_url.port or 0)) as raw:
            raw.sendall(
                f"GET /pictures/{path} HTTP/1.1\r\nHost: 127.0.0.1:{desk.client.base_url.port}\r\n"
                "Connection: close\r\n\r\n".encode()
            )
            assert raw.makefile("rb").readline().split()[1] == b"404", path
    (data / "1.jpg").write_text("<script>alert(1)</script>")
    assert desk.client.get("/pictures/1").status_code == 400


def test_a_server_for_one_rater(study: Study) -> None:
    with rating(study, "ann") as desk:
        assert desk.client.get("/raters").json()["rater"] == "ann"
        assert desk.post("/open", rater="bob").status_code == 403
        assert desk.post("/open", rater="ann").status_code == 200


# --- the command ---


@pytest.mark.parametrize("name", ["rate", "judge"])
def test_answers_are_not_required(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["owleval", name])
    said = capsys.readouterr().err
    assert "the following arguments are required: STUDY" in said
    assert "ANSWERS" not in said.split("required:")[1]


def test_the_command(study: Study) -> None:
    """It says where it is, and at the end how much was rated and where."""
    command = [sys.executable, "-m", "owl_fast.evaluate", "owleval", "rate", str(study.folder), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.fullmatch(r"rate at (http://127\.0\.0\.1:\d+) \(Ctrl-C ends\)\n", line)
        assert match, line
        with httpx.Client(base_url=match[1], trust_env=False) as client:
            one = client.post("/open", json={"rater": "Ann Lee"}).json()["questions"][0]
            sent = {"rater": "Ann Lee", "question": 1, "answer": one["answers"][0]["id"], "grade": "A"}
            assert client.post("/rate", json=sent).status_code == 200
        port = match[1].rpartition(":")[2]
        second = subprocess.run([*command[:-1], port], capture_output=True, text=True, check=False)
        assert (second.returncode, second.stdout) == (1, "")
        assert (
            f"cannot listen on 127.0.0.1, port {port} (Address already in use); say --port N" in second.stderr
        )
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    place = study.folder / "ratings" / "Ann Lee.jsonl"
    assert said == f"Ann Lee: 1 of {ANSWERS} answers rated, in {place}\n"
    assert json.loads(place.read_text())["grade"] == "A"


def test_what_the_command_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(*words: object) -> str:
        assert main(["owleval", "rate", *map(str, words)]) == 1
        return capsys.readouterr().err

    study = small_study(tmp_path)
    assert "name the data set it is about with --data" in said(tmp_path / "nowhere")
    assert "no answers yet" in said(tmp_path / "empty", "--data", study.data)
    assert "as those of models do" in said(study.folder, "--rater", "judge x")
    (study.folder / "ratings").mkdir()
    write_lines(study.folder / "ratings" / "ann.jsonl", [{"grade": "A"}])
    assert "ann.jsonl:1: no rating" in said(study.folder)
    (study.folder / "ratings" / "ann.jsonl").unlink()
    (study.data / "cases" / "3.jpg").unlink()
    assert "no picture 3.jpg" in said(study.folder)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "needs the package uvicorn: pip install '.[serve]'" in said(study.folder)
    with pytest.raises(SystemExit, match="2"):
        main(["owleval", "rate", str(study.folder), "--port", "70000"])
