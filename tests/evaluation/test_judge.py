"""Models that judge: what they are asked, what is read of their replies, what is kept."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from owl_fast.evaluate.command import main
from owl_fast.evaluate.judging.asking import objects
from owl_fast.evaluate.judging.grades import read_grade
from owl_fast.evaluate.judging.pairs import read_scores
from owl_fast.evaluation.ratings import Rating, read_pairs, read_ratings
from owl_fast.evaluation.study import open_study
from tests.chat.fake_server import FakeServer, answer, chunk
from tests.evaluation.small_set import answers_of, small_set, write_lines
from tests.serving.waiting import until

TEXTS = [
    {"question_id": number, "text": f"What is {number} times two?", "category": "maths"} for number in (1, 2)
]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer().running() as running:
        yield running


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two systems, of which one left the last question out."""
    small_set(tmp_path / "data")
    write_lines(tmp_path / "one.jsonl", answers_of("one", ["red", "a ball", "green", "three"]))
    write_lines(tmp_path / "two.jsonl", answers_of("two", ["blue", "a square", "black"]))
    return tmp_path / "study"


def judge(study: Path, server: FakeServer, *more: str) -> int:
    """The command, with what begins the study."""
    given = [study, study.parent / "one.jsonl", study.parent / "two.jsonl", "--data", study.parent / "data"]
    return main(["owleval", "judge", *map(str, given), "--url", server.url, *more])


def prompt_of(request: dict[str, Any]) -> str:
    content = request["messages"][0]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def grading(request: dict[str, Any]) -> Iterator[Any]:
    """A for whoever says red, B otherwise."""
    grade = "A" if "<answer>\nred\n</answer>" in prompt_of(request) else "B"
    return iter(answer(f'Sure: {{"grade": "{grade}", "abilities": ["a", "f"]}}'))


def test_every_answer_is_graded_once(
    study: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.default = grading
    assert judge(study, server) == 0
    assert "served-owl: 7 judged now" in capsys.readouterr().err
    ratings = read_ratings(study)
    assert {(rating.rater, rating.model) for rating in ratings} == {("judge served-owl", "served-owl")}
    assert {(rating.question, rating.system): rating.grade for rating in ratings} == {
        (1, "one"): "A", (2, "one"): "B", (3, "one"): "B", (4, "one"): "B",
        (1, "two"): "B", (2, "two"): "B", (3, "two"): "B",
    }  # fmt: skip
    assert {rating.question: rating.shown for rating in ratings} == {1: "a", 2: "a", 3: "af", 4: "a"}
    assert (study / "ratings" / "judge served-owl.jsonl").is_file()
    assert len(server.requests) == 7
    assert judge(study, server) == 0
    assert len(server.requests) == 7
    printed = capsys.readouterr()
    path = study / "ratings" / "judge served-owl.jsonl"
    assert (printed.out, printed.err) == (f"{path}: complete, 7 judged; nothing to do\n", "")


def test_a_judge_that_never_replied_leaves_no_file(
    study: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.default = lambda _: (500, {"error": {"message": "out of order"}})
    assert judge(study, server) == 1
    server.default = lambda _: iter(answer("no"))
    assert judge(study, server) == 1
    assert "served-owl: 0 judged now\n" in capsys.readouterr().err
    assert list(study.rglob("*served-owl*")) == []


def test_what_a_judge_is_asked(study: Path, server: FakeServer) -> None:
    server.default = grading
    assert judge(study, server, "--parallel", "1", "--model", "strict") == 0
    asked = next(body for body in server.requests if "And what color" in prompt_of(body))
    assert (asked["model"], asked["temperature"]) == ("strict", 0)
    picture, text = asked["messages"][0]["content"]
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")
    said = text["text"]
    assert said.index("What is on the left?") < said.index("a ball") < said.index("And what color is it?")
    assert "a square" not in said
    assert "A: right and complete" in said
    assert "f: multi-turn dialogue. What was said before in the conversation is taken up." in said
    assert "e: reasoning" not in said
    assert judge(study, server, "--model", "blind", "--no-pictures") == 0
    assert isinstance(server.requests[-1]["messages"][0]["content"], str)


def test_a_reply_that_cannot_be_read_has_one_more_try(
    study: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.default = grading
    server.scripts.extend([answer("I would say B."), answer('{"grade": "C", "abilities": "a"}')])
    server.scripts.extend([answer("no"), answer('{"grade": "E", "abilities": []}')])
    assert judge(study, server, "--parallel", "1") == 1
    assert prompt_of(server.requests[1]).startswith(prompt_of(server.requests[0]))
    assert "JSON object alone" in prompt_of(server.requests[1])[len(prompt_of(server.requests[0])) :]
    digest = open_study(study).answers["one"].digest(1)
    assert read_ratings(study)[0] == Rating("judge served-owl", 1, "one", "C", "a", "served-owl", digest)
    said = capsys.readouterr().err
    assert "served-owl: 6 judged now" in said
    assert 'question 1, two: the reply cannot be read: \'{"grade": "E", "abilities": []}\'' in said
    assert "1 not judged; the same command asks for them again" in said
    assert judge(study, server) == 0
    assert len(read_ratings(study)) == 7


def test_a_server_that_refuses_one_and_one_that_is_gone(
    study: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.default = grading
    server.scripts.append((400, {"error": {"message": "not this picture"}}))
    assert judge(study, server, "--parallel", "1") == 1
    assert "question 1, one: " in (said := capsys.readouterr().err)
    assert "says 400: not this picture" in said
    assert len(read_ratings(study)) == 6
    server.default = lambda _: (400, {"error": {"message": "too long"}})
    assert judge(study, server, "--model", "short", "--parallel", "1") == 1
    assert capsys.readouterr().err.count("says 400: too long") == 7  # all are asked, however many it refuses
    server.default = lambda _: (500, {"error": {"message": "out of order"}})
    assert judge(study, server, "--model", "other") == 1
    assert "out of order; 5 requests in a row; what was judged is kept" in capsys.readouterr().err


def test_ctrl_c_keeps_what_was_judged(study: Path, server: FakeServer) -> None:
    """It comes when the third request is under way, to a server that never ends its answer."""
    never = threading.Event()

    def endless(request: dict[str, Any]) -> Iterator[Any]:
        if len(server.requests) <= 2:
            yield from grading(request)
            return

        until(lambda: len(read_ratings(study)) == 2)
        main_thread = threading.main_thread().ident
        assert main_thread is not None
        signal.pthread_kill(main_thread, signal.SIGINT)
        yield chunk("{")
        while not never.wait(0.05):
            yield b": on\n\n"

    server.default = endless
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        assert judge(study, server, "--parallel", "1") == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(read_ratings(study)) == 2
    assert server.gone.wait(20)
    server.default = grading
    assert judge(study, server) == 0
    assert len(read_ratings(study)) == 7


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Two questions of words, with the answers of three systems."""
    (tmp_path / "data").mkdir()
    write_lines(tmp_path / "data" / "questions.jsonl", TEXTS)
    for system, said in {"ref": ("2", "4"), "good": ("two", "four"), "bad": ("9", "8")}.items():
        lines = [{"question_id": n, "text": text, "model_id": system} for n, text in enumerate(said, start=1)]
        write_lines(tmp_path / f"{system}.jsonl", lines)
    return tmp_path / "study"


def compare(study: Path, server: FakeServer, *more: str) -> int:
    given = [study, *(study.parent / f"{name}.jsonl" for name in ("ref", "good", "bad"))]
    return main(
        [
            "owleval",
            "judge",
            *map(str, given),
            "--data",
            str(study.parent / "data"),
            "--url",
            server.url,
            *more,
        ]
    )


def scoring(request: dict[str, Any]) -> Iterator[Any]:
    """Words get 9, digits 8, wrong ones 2; whoever comes first one more."""
    first, second = prompt_of(request).split("[The second assistant]")
    worth = [2 if "\n9\n" in said or "\n8\n" in said else 9 if "o\n<" in said or "r\n<" in said else 8
             for said in (first, second)]  # fmt: skip
    return iter(answer(json.dumps({"first": worth[0] + 1, "second": worth[1]})))


def test_pairs_in_both_orders(texts: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.default = scoring
    assert compare(texts, server, "--reference", "ref") == 0
    assert len(server.requests) == 8  # two systems, two questions, two orders
    scores = {
        (pair.system, pair.question, pair.system_first): (pair.score, pair.reference_score)
        for pair in read_pairs(texts)
    }
    assert scores["good", 1, True] == (10, 8)
    assert scores["good", 1, False] == (9, 9)
    assert scores["bad", 2, True] == (3, 8)
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert printed[1] == ["bad", "2", "5.0", "17.0", "29.4%"]
    assert printed[2] == ["good", "2", "19.0", "17.0", "111.8%"]
    assert compare(texts, server, "--reference", "ref") == 0
    assert len(server.requests) == 8
    again = capsys.readouterr()
    assert again.out.endswith("served-owl.jsonl: complete, 8 judged; nothing to do\n")
    assert again.err == ""


def test_no_pair_no_file(texts: Path, server: FakeServer) -> None:
    server.default = lambda _: (500, {"error": {"message": "out of order"}})
    assert compare(texts, server, "--reference", "ref") == 1
    assert list(texts.rglob("*served-owl*")) == []


def test_a_question_scored_in_one_order_counts_by_that(
    texts: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.default = scoring
    server.scripts.extend([answer("ten"), answer('{"first": 11, "second": 3}')])
    assert compare(texts, server, "--reference", "ref", "--parallel", "1") == 1
    printed = capsys.readouterr()
    assert printed.out.splitlines()[1].split() == ["bad", "2", "4.5", "17.5", "25.7%"]
    assert "question 1, bad: the reply cannot be read" in printed.err


def test_nothing_to_compare(
    texts: Path, study: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(texts, server, "--reference", "nobody") == 1
    assert "--reference nobody: no such system; there are bad, good, ref" in capsys.readouterr().err


def test_pictures_are_not_compared(
    study: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert judge(study, server, "--reference", "one") == 1
    assert "no question without a picture that one and another system answered" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a": 1}', [{"a": 1}]),
        ('```json\n{"a": {"b": 1}}\n``` and {"c": 2}', [{"a": {"b": 1}}, {"c": 2}]),
        ('a { b {"c": 3} }', [{"c": 3}]),
        ("{" * 50_000, []),
        ('{"a":' * 9_000, []),
        ("nothing", []),
    ],
    ids=["alone", "fenced", "behind a brace", "braces", "deep", "none"],
)
def test_objects_in_a_reply(text: str, found: list[Any]) -> None:
    assert list(objects(text)) == found


def test_a_reply_of_braces_alone_is_given_up() -> None:
    """Each of them might begin an object, and looking at all would take minutes."""
    assert list(objects("{" * 2_000_000)) == []
    assert list(objects('{"a":' * 200_000)) == []


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ({"grade": "a ", "abilities": ["A", "reasoning", "c", 3]}, ("A", "ae")),
        ({"grade": "D", "abilities": "ae"}, ("D", "ae")),
        ({"grade": "D", "abilities": "e, a"}, ("D", "ae")),
        ({"grade": "D", "abilities": "Instruction understanding, c"}, ("D", "a")),
        ({"grade": "D", "abilities": []}, ("D", "")),
        ({"grade": "D"}, None),
        ({"grade": "AB", "abilities": []}, None),
        ({"grade": 1, "abilities": []}, None),
    ],
)
def test_grades_in_a_reply(reply: dict[str, Any], read: Any) -> None:
    assert read_grade("abe", reply) == read


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ({"first": 1, "second": 9.5}, (1, 9.5)),
        ({"first": 0, "second": 9}, None),
        ({"first": True, "second": 9}, None),
        ({"first": "8", "second": 9}, None),
        ({"first": float("nan"), "second": 9}, None),
    ],
)
def test_scores_in_a_reply(reply: dict[str, Any], read: Any) -> None:
    assert read_scores(reply) == read


def test_our_own_server_with_a_model_that_cannot_judge(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.serving.owls import serving

    with serving() as owls:
        given = [study, study.parent / "one.jsonl", "--data", study.parent / "data"]
        assert main(["owleval", "judge", *map(str, given), "--url", f"{owls.url}/v1"]) == 1
    said = capsys.readouterr().err
    assert said.count("the reply cannot be read") == 4
    assert "owl-nano: 0 judged now" in said
