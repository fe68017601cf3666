"""The server under load: what clients send and see, which rows there are; not the times."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import statistics
import sys
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks import models, run
from benchmarks.cases import serve
from benchmarks.cases.serve import Point
from benchmarks.cases.serving import servers
from benchmarks.cases.serving.asked import DIFFERENT, KINDS, SHARED, TEXT, Asker, Size, arrivals
from benchmarks.cases.serving.client import ANSWERED, FAILED, REFUSED, UNFINISHED, Client, Outcome, Plan
from benchmarks.cases.serving.load import Load, Seen, measure, percentile
from benchmarks.harness import COUNT, Row, beside_ours
from benchmarks.vocabulary import text_of, words
from owl_fast.errors import OwlError
from owl_fast.export.vocabulary import filled
from owl_fast.serve.arguments import LEAST_CONTEXT
from owl_fast.tokenizer import StreamDecoder, Tokenizer
from tests.benchmarks.answering import Answering

CPU = torch.device("cpu")
SIZE = Size(prompt=8, answer=3, seconds=0.3, patience=5, most=60)
NANO = Tokenizer.from_file(models.NANO / "tokenizer.model")
FAKE = [sys.executable, str(Path(__file__).with_name("answering.py"))]


@pytest.fixture
def answering() -> Iterator[Answering]:
    with Answering() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


def test_every_size_has_a_context_that_the_server_takes() -> None:
    for size in (*serve.SIZES.values(), *serve.CPU_SIZES.values()):
        assert size.prompt + size.answer + serve.MARGIN >= LEAST_CONTEXT


def plan(server: Answering, cases: list[str], **others: Any) -> Plan:
    bodies = [json.dumps({"max_tokens": 3, "case": case}) for case in cases]
    settings = {"patience": 5.0, "path": "/v1/completions"} | others
    return Plan("127.0.0.1", server.server_port, bodies=bodies, **settings)


def ended(server: Answering, cases: list[str], **others: Any) -> list[Outcome]:
    return asyncio.run(Client(plan(server, cases, **others)).run())


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_pieces_of_an_answer_are_seen_however_they_are_cut(answering: Answering, path: str) -> None:
    (outcome,) = ended(answering, [""], arrivals=[0.0], path=path)
    assert (outcome.result, outcome.detail) == (ANSWERED, "")
    assert len(outcome.moments) == 3
    assert [*outcome.moments] == sorted(outcome.moments)
    assert outcome.due <= outcome.sent < outcome.moments[0] < outcome.moments[-1] < outcome.end


@pytest.mark.parametrize(
    ("case", "result", "detail"),
    [
        ("429", REFUSED, "status 429"),
        ("503", REFUSED, "status 503"),
        ("500", FAILED, "status 500"),
        ("short", FAILED, "finish_reason stop"),
        ("error", FAILED, "broken"),
        ("cut", FAILED, "IncompleteReadError"),
    ],
)
def test_what_is_no_answer_is_told_apart(answering: Answering, case: str, result: str, detail: str) -> None:
    (outcome,) = ended(answering, [case], arrivals=[0.0])
    assert outcome.result == result
    assert detail in outcome.detail


def test_a_server_that_is_gone_fails_every_request() -> None:
    with Answering() as server:
        pass
    assert {outcome.result for outcome in ended(server, [""] * 3, arrivals=[0.0] * 3)} == {FAILED}


def test_open_loop_waits_for_nobody(answering: Answering) -> None:
    """A request that is not answered holds up no other, and is given up."""
    cases = ["silent", "silent", *[""] * 8]
    outcomes = ended(answering, cases, arrivals=[place * 0.01 for place in range(10)], patience=1.0)
    assert [outcome.result for outcome in outcomes] == [UNFINISHED] * 2 + [ANSWERED] * 8
    assert [outcome.due for outcome in outcomes] == [place * 0.01 for place in range(10)]
    assert all(outcome.sent >= outcome.due for outcome in outcomes)
    assert max(outcome.sent for outcome in outcomes) < min(o.end for o in outcomes if o.result == UNFINISHED)


def test_closed_loop_has_as_many_requests_under_way_as_clients(answering: Answering) -> None:
    outcomes = ended(answering, [""] * 30, clients=3, seconds=60)
    assert [outcome.result for outcome in outcomes] == [ANSWERED] * 30
    assert answering.most == 3


def test_closed_loop_begins_nothing_when_the_time_is_up(answering: Answering) -> None:
    outcomes = ended(answering, [""] * 1000, clients=2, seconds=0.2)
    assert 2 <= len(outcomes) < 1000
    assert max(outcome.due for outcome in outcomes) < 0.2


def test_arrivals_are_those_of_a_poisson_process() -> None:
    moments = arrivals(4000, 8.0, seed=0)
    gaps = [b - a for a, b in pairwise(moments)]
    assert len(moments) == 4000
    assert 0 <= moments[0] <= moments[-1] <= 8
    assert statistics.fmean(gaps) == pytest.approx(1 / 500, rel=0.01)
    assert statistics.stdev(gaps) == pytest.approx(1 / 500, rel=0.1)  # of exponential gaps it is the mean
    assert arrivals(4000, 8.0, seed=0) == moments


def test_texts_have_their_length_and_begin_in_their_own_way() -> None:
    known = words(NANO)
    texts = [text_of(16, known, index) for index in range(3 * len(known))]
    assert {len(NANO.encode(text, literal=True)) for text in texts} == {16}
    assert len({tuple(NANO.encode(text, literal=True)[:2]) for text in texts}) == len(texts)


def test_every_token_of_a_filled_vocabulary_shows(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(filled(NANO.model_bytes, 1024))
    larger = Tokenizer.from_file(path)
    assert larger.vocab_size == 1024
    text = text_of(50, words(NANO), 7)
    assert larger.encode(text, literal=True) == NANO.encode(text, literal=True)
    decoder = StreamDecoder(larger, begun=True)
    assert all(decoder.push(token).strip() for token in range(NANO.vocab_size, 1024))


def pictures_of(bodies: list[str]) -> list[str]:
    return [json.loads(body)["messages"][0]["content"][0]["image_url"]["url"] for body in bodies]


def test_pictures_are_shared_or_not() -> None:
    asker = Asker(words(NANO), SIZE)
    shared, others = (pictures_of(asker.bodies(kind, 4, "owl", {})) for kind in (SHARED, DIFFERENT))
    assert [len(set(shared)), len(set(others))] == [1, 4]
    assert set(pictures_of(asker.bodies(SHARED, 1, "owl", {}))).isdisjoint([*shared, *others])
    picture = Image.open(io.BytesIO(base64.b64decode(shared[0].partition(",")[2])))
    assert (picture.format, picture.size) == ("JPEG", (640, 480))


def test_a_load_is_measured_behind_a_lone_request(answering: Answering) -> None:
    server = servers.Server(answering.server_port, "answering", {"logit_bias": {"2": -100}})
    asker = Asker(words(NANO), SIZE)
    seen = measure(server, TEXT, Load(offered=40.0), asker, SIZE)
    assert seen.counts == {ANSWERED: 12}
    assert len(seen.first) == 12
    assert len(seen.between) == 12 * 2
    assert len(answering.asked) == 13
    asked = [body for _, body in answering.asked]
    assert len({body["prompt"] for body in asked}) == 13
    assert all(body["logit_bias"] and body["stream"] and body["model"] == "answering" for body in asked)
    measure(server, SHARED, Load(clients=2), asker, SIZE._replace(most=10))
    assert {path for path, _ in answering.asked[13:]} == {"/v1/chat/completions"}
    assert len(answering.asked) == 13 + 1 + 3


def test_a_server_that_does_not_answer_is_not_measured(answering: Answering) -> None:
    server = servers.Server(answering.server_port, "answering", {"case": "500"})
    with pytest.raises(OwlError, match="lone request: status 500"):
        measure(server, TEXT, Load(clients=1), Asker(words(NANO), SIZE), SIZE)


def seen_of(*results: str, due: float = 1.0) -> Seen:
    outcomes = [
        Outcome(due, due + 0.5, [due + 1, due + 1.25, due + 2] if result == ANSWERED else [], 4.0, result)
        for result in results
    ]
    return Seen(outcomes, seconds=2.0, tokens=3, processor=0.4)


def test_a_late_request_has_waited_since_it_was_due() -> None:
    seen = seen_of(ANSWERED, REFUSED)
    assert seen.first == [1.0]
    assert seen.between == [0.25, 0.75]
    assert seen.each == [0.5]
    assert seen.late == 0.5
    assert seen.rate == 1 / 4  # of answers, until the last request had ended


def test_an_answer_may_have_nothing_to_show() -> None:
    """Its tokens may make no character."""
    seen = Seen([Outcome(0.0, 0.0, pieces, 1.0, ANSWERED) for pieces in ([], [0.5])], 2.0, 3, 0.1)
    assert (seen.first, seen.between, seen.each, seen.rate) == ([0.5], [], [], 1.0)


def test_percentiles() -> None:
    values = [float(value) for value in range(101)]
    assert [percentile(values, percent) for percent in (50, 90, 99)] == [50, 90, 99]
    assert percentile([3.0], 99) == 3


def rows_of(seen: Seen | str) -> list[Row]:
    model = models.made(models.config_of("tiny"), torch.float32, CPU)
    return serve._rows(Point(TEXT, Load(offered=2.5), "owl_fast", seen), "tiny text", model, CPU, SIZE)


def test_rows_account_for_every_request() -> None:
    rows = rows_of(seen_of(ANSWERED, REFUSED, ANSWERED, FAILED, UNFINISHED))
    assert {row.shape for row in rows} == {"tiny text, 2.5 requests/s"}
    counts = {row.metric: row.median for row in rows if row.unit == COUNT}
    assert counts == {ANSWERED: 2, REFUSED: 1, FAILED: 1, UNFINISHED: 1}
    values = {row.metric: row.median for row in rows}
    assert values["first token p99"] == 1000
    assert values["between tokens p50"] == 500
    rates = {row.unit: row.median for row in rows if row.unit.endswith("/s")}
    assert rates == {"req/s": 0.5, "tok/s": 1.5}
    assert "10% of a core, late by 500 ms" in rows[0].note


def test_loads_grow_until_ours_does_not_keep_up() -> None:
    """Beside a contender of which nothing depends; another one is asked at the same loads later."""
    points: list[Point] = []

    def meet(most: float) -> list[float | None]:
        for load in serve._loads(points, TEXT, SIZE):
            rate = min(load.offered or 10.0, most)
            seen = seen_of(ANSWERED)
            seen.__dict__["answered"] = seen.outcomes * round(rate * seen.span)
            points.extend([Point(TEXT, load, "owl_fast", seen), Point(TEXT, load, "peer", "gone")])
        return [point.load.offered for point in points[::2]]

    shares = [None, None, 2.0, 5.0, 8.0, 10.0, 13.0]
    assert meet(most=11.0) == shares
    assert [load.offered for load in serve._loads(points, TEXT, SIZE)] == shares
    points.clear()
    assert meet(most=25.0) == [*shares, 20.0, 30.0]
    points.clear()
    assert meet(most=1000.0) == [*shares, 20.0, 30.0, 45.0]


def test_nothing_answered_is_said() -> None:
    rows = rows_of(seen_of(FAILED))
    assert {row.note for row in rows if row.unit == "ms"} == {"absent: nothing was answered"}
    assert [row.note for row in rows_of("not installed")] == ["absent: not installed"]


def test_counts_are_not_compared() -> None:
    mine, theirs = (Row("serve", "s", name, "answered", COUNT, median=4.0) for name in ("owl_fast", "x"))
    assert beside_ours([mine, theirs]) == [mine, theirs]


def test_what_a_server_says_before_it_ends_is_told() -> None:
    dying = [sys.executable, "-c", "import sys; sys.exit('no such model')"]
    with pytest.raises(OwlError, match="code 1: no such model"), servers.running(dying):
        pass


def report(tmp_path: Path, *args: str) -> list[dict[str, Any]]:
    out = tmp_path / "out.json"
    command = ["serve", "--device", "cpu", "--model", "tiny", "--work-dir", str(tmp_path), "--json", str(out)]
    assert run.main([*command, *args]) == 0
    return [row for row in json.loads(out.read_text())["rows"] if row["case"] == "serve"]


def check_rows(rows: list[dict[str, Any]], kind: str, contenders: set[str]) -> None:
    answered = [row for row in rows if f" {kind}, " in row["shape"] and row["unit"] == "req/s"]
    shapes = list(dict.fromkeys(row["shape"].rpartition(", ")[2] for row in answered))
    assert shapes[:2] == ["1 client", "8 clients"]
    offered = [float(shape.removesuffix(" requests/s")) for shape in shapes[2:]]
    (capacity,) = (
        r["median"] for r in answered if "8 clients" in r["shape"] and r["contender"] == "owl_fast"
    )
    assert offered[:5] == [pytest.approx(share * capacity, rel=0.06) for share in SIZE.shares]
    assert len(offered) <= len(SIZE.shares) + SIZE.more
    for shape in {row["shape"] for row in answered}:
        assert {row["contender"] for row in answered if row["shape"] == shape} == contenders


def test_every_kind_of_request_meets_every_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a server that answers nobody, and one that does not start."""
    monkeypatch.setattr(serve, "SERVER", FAKE)
    monkeypatch.setitem(serve.CPU_SIZES, "tiny", SIZE._replace(seconds=0.2))
    broken = [sys.executable, "-c", "import sys; sys.exit('broken')"]
    monkeypatch.setattr(serve.llama_cpp_server, "command", lambda *_: broken)
    rows = report(tmp_path, "--quant", "int4")
    theirs = serve.llama_cpp_server.name("int4")
    check_rows(rows, TEXT, {"owl_fast", serve.TRANSFORMERS, theirs})
    for kind in (SHARED, DIFFERENT):
        check_rows(rows, kind, {"owl_fast"})
    notes = {row["contender"]: row["note"] for row in rows if row["note"].startswith("absent")}
    assert notes.keys() == {serve.TRANSFORMERS, theirs}
    assert notes[theirs].endswith("code 1: broken")
    assert all(row["limit_fraction"] > 0 for row in rows if row["unit"] == "tok/s")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json"]


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["none", "int4"])
def test_real_servers(quant: str, tmp_path: Path) -> None:
    for needed in ("gguf", "llama_cpp", "sse_starlette", "transformers"):
        pytest.importorskip(needed)
    rows = report(tmp_path, "--quant", quant, "--gguf", str(tmp_path / "gguf"))
    contenders = {"owl_fast", serve.TRANSFORMERS, serve.llama_cpp_server.name(quant)}
    absent = {row["contender"] for row in rows if row["note"].startswith("absent")}
    assert absent == ({serve.TRANSFORMERS} if quant != "none" else set())
    check_rows(rows, TEXT, contenders)
    assert {row["metric"] for row in rows if row["unit"] == COUNT} <= {ANSWERED, REFUSED, UNFINISHED}
    first = [row for row in rows if row["metric"] == "throughput" and "1 client" in row["shape"]]
    assert all(row["median"] > 0 for row in first if row["contender"] not in absent)


def test_transformers_gives_the_answer_of_ours() -> None:
    pytest.importorskip("transformers")
    from benchmarks.peers import transformers_server
    from benchmarks.peers.transformers_llama import llama

    model = models.random_model("tiny", CPU)
    prompt = text_of(8, words(NANO), 3)
    ours = models.usual_engine(model, 32, 1).generate(prompt, max_tokens=6, temperature=0.0, ignore_eos=True)

    async def texts() -> list[str]:
        answers = transformers_server.Answers(llama(model), NANO)
        asked = transformers_server.Completion(prompt=prompt, max_tokens=6)
        return [event async for event in answers.stream(asked)]

    *events, last, done = asyncio.run(texts())
    assert done == "data: [DONE]\n\n"
    choices = [json.loads(event[6:])["choices"][0] for event in [*events, last]]
    assert len(events) == 6
    assert [choice["finish_reason"] for choice in choices] == [None] * 6 + ["length"]
    assert "".join(choice["text"] for choice in choices).strip() == ours.text.strip()


def test_kinds_are_told_apart_by_their_names() -> None:
    """--only picks those with a text in their name."""
    assert [kind for kind in KINDS if "picture" in kind] == [SHARED, DIFFERENT]
    assert [kind for kind in KINDS if TEXT in kind] == [TEXT]
