"""Streams on the wire, clients that leave, and many clients at once."""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import json
import random
import resource
import threading
import time
from collections import Counter
from typing import Any

import httpx
import pytest

from owl_fast.serving.limits import Limits
from tests.serving.clients import load_of
from tests.serving.owls import (
    FIXED,
    Owls,
    asking,
    events,
    handles,
    nano,
    seen,
    serving,
)
from tests.serving.waiting import PATIENCE, until

LONG = {"ignore_eos": True, "max_tokens": 1500}
SHORTER = {"ignore_eos": True, "max_tokens": 100}


def body(**fields: Any) -> dict[str, Any]:
    return {"messages": seen(), "stream": True, **FIXED, **fields}


def test_what_is_sent(owls: Owls) -> None:
    with owls.client() as client:
        reply = client.post("/v1/chat/completions", json=body(stream_options={"include_usage": True}))
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["cache-control"] == "no-cache"
    *sent, last = events(reply.text)
    assert last == "[DONE]"
    assert reply.text == "".join(f"data: {data}\n\n" for data in (*sent, last))
    chunks = [json.loads(data) for data in sent]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(set(chunk["choices"][0]["delta"]) == {"content"} for chunk in chunks[1:-2])
    assert chunks[-2]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert chunks[-2]["timings"]["predicted_n"] == chunks[-1]["usage"]["completion_tokens"]
    assert chunks[-1]["choices"] == []


def test_no_usage_unless_asked_for(owls: Owls) -> None:
    with owls.client() as client:
        reply = client.post("/v1/chat/completions", json=body())
    assert "usage" not in reply.text


def test_characters_and_stop_strings_are_whole(owls: Owls) -> None:
    """Whatever the model says at a high temperature is UTF-8 in every chunk, and no stop string leaks."""
    stops = ["e", "th"]
    with owls.client() as client:
        for seed in range(8):
            asked = body(temperature=2, seed=seed, max_tokens=60, messages=asking("x"))
            whole = client.post("/v1/chat/completions", json={**asked, "stream": False}).json()
            expected = whole["choices"][0]["message"]["content"]
            assert text_of(client, asked) == expected
            stopped = text_of(client, {**asked, "stop": stops})
            ends = [expected.find(stop) for stop in stops if stop in expected]
            assert stopped == (expected[: min(ends)] if ends else expected)


def text_of(client: httpx.Client, asked: dict[str, Any]) -> str:
    text = ""
    with client.stream("POST", "/v1/chat/completions", json=asked) as reply:
        data = b"".join(reply.iter_raw())
    for line in data.split(b"\n\n"):
        if line.startswith(b"data: {"):
            for choice in json.loads(line[6:].decode("utf-8"))["choices"]:
                text += choice["delta"].get("content", "")
    return text


@pytest.fixture
def held_up(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Steps of the model, let through one by one."""
    engine, gate = nano(), threading.Semaphore(0)
    run = engine._runner.run

    def gated(plan: Any) -> Any:
        assert gate.acquire(timeout=PATIENCE)
        return run(plan)

    monkeypatch.setattr(engine._runner, "run", gated)
    return gate


def test_comments_while_nothing_is_said(held_up: threading.Semaphore) -> None:
    limits = dataclasses.replace(Limits(), comment=0.1)
    with serving(limits=limits) as owls, owls.client() as client:
        held_up.release()  # the first token
        with client.stream("POST", "/v1/chat/completions", json=body()) as reply:
            lines = reply.iter_lines()
            comments = 0
            while comments < 3:
                comments += next(lines).startswith(":")
            held_up.release(100)
            rest = "\n".join(lines)
        assert rest.rstrip().endswith("data: [DONE]")
        owls.idle()


def test_who_waits_too_long_is_told(held_up: threading.Semaphore) -> None:
    """Four run, one waits: only it is sent away, with a status also where a stream was wanted."""
    limits = dataclasses.replace(Limits(), wait=3.0)
    with serving(limits=limits) as owls, owls.client() as client:
        replies: list[httpx.Response] = []

        def ask() -> None:
            replies.append(client.post("/v1/chat/completions", json=body(**SHORTER)))

        running = [threading.Thread(target=ask) for _ in range(4)]
        for thread in running:
            thread.start()
        until(lambda: owls.engine.stats().running == 4 or bool(held_up.release()))
        late = client.post("/v1/chat/completions", json=body())
        assert late.status_code == 503
        assert int(late.headers["retry-after"]) >= 1
        assert late.json()["error"]["code"] == "overloaded"
        held_up.release(1000)
        for thread in running:
            thread.join(PATIENCE)
        assert [reply.status_code for reply in replies] == [200] * 4
        owls.idle()


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_whose_time_is_over_is_too_long(stream: bool) -> None:
    """What has been said by then stays said."""
    limits = dataclasses.replace(Limits(), request=0.5)
    with serving(limits=limits) as owls, owls.client() as client:
        begin = time.monotonic()
        reply = client.post("/v1/chat/completions", json=body(stream=stream, n=4, **LONG))
        assert reply.status_code == 200
        assert time.monotonic() - begin < 20
        if stream:
            last = [json.loads(data) for data in events(reply.text) if data != "[DONE]"][-1]
            assert last["choices"][0]["finish_reason"] == "length"
            assert last["timings"]["predicted_n"] < 4 * 1500
        else:
            assert {choice["finish_reason"] for choice in reply.json()["choices"]} == {"length"}
            assert 4 <= reply.json()["usage"]["completion_tokens"] < 4 * 1500
        owls.idle()


def test_the_queue_is_bounded(held_up: threading.Semaphore) -> None:
    limits = dataclasses.replace(Limits(), waiting=3)
    with serving(limits=limits) as owls, owls.client() as client:
        statuses: Counter[int] = Counter()

        def ask() -> None:
            statuses[client.post("/v1/chat/completions", json=body(stream=False)).status_code] += 1

        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        until(lambda: statuses[429] > 0)  # at once, while nothing moves
        held_up.release(10_000)
        for thread in threads:
            thread.join(PATIENCE)
        assert set(statuses) == {200, 429}
        assert statuses[200] >= 3
        owls.idle()


def test_goodbyes() -> None:
    """What is still answered when the server ends gets an event, or a status."""
    limits = dataclasses.replace(Limits(), drain=0.2)
    replies: dict[bool, httpx.Response] = {}
    with serving(limits=limits) as owls:
        client = owls.client()

        def ask(stream: bool) -> None:
            replies[stream] = client.post("/v1/chat/completions", json=body(stream=stream, **LONG))

        threads = [threading.Thread(target=ask, args=(stream,)) for stream in (False, True)]
        for thread in threads:
            thread.start()
        until(lambda: owls.engine.stats().running == 2)
    for thread in threads:
        thread.join(PATIENCE)
    client.close()
    assert replies[False].status_code == 503
    *_, last = events(replies[True].text)
    assert json.loads(last)["error"]["code"] == "shutting_down"


async def cancelled_streams(owls: Owls, count: int, seed: int) -> None:
    """Clients that leave after a random number of chunks, some before the first."""
    rng = random.Random(seed)
    places = asyncio.Semaphore(8)
    limits = httpx.Limits(max_connections=16, max_keepalive_connections=0)
    async with httpx.AsyncClient(
        base_url=owls.url, timeout=PATIENCE, trust_env=False, limits=limits
    ) as client:

        async def leave(n: int, after: int) -> None:
            async with places:
                asked = body(n=n, **LONG, messages=seen() if rng.random() < 0.3 else asking(f"Hello {after}"))
                async with client.stream("POST", "/v1/chat/completions", json=asked) as reply:
                    assert reply.status_code == 200
                    read = 0
                    async for _ in reply.aiter_raw():
                        read += 1
                        if read >= after:
                            return

        await asyncio.gather(*(leave(rng.choice([1, 4]), rng.randint(0, 20)) for _ in range(count)))


def resident() -> int:
    """Bytes, without what malloc keeps for later."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def leaves_nothing(owls: Owls, before: int, count: int) -> int:
    """By how much resident memory grows while so many streams are cancelled; before: so many others."""
    asyncio.run(cancelled_streams(owls, before, seed=0))  # every block of the cache has been touched
    fixed = owls.fixed_answer()
    owls.empty()
    threads, files, memory = threading.active_count(), handles(), resident()
    cancelled = owls.engine.stats().cancelled
    asyncio.run(cancelled_streams(owls, count, seed=1))
    owls.empty()
    assert owls.engine.stats().cancelled > cancelled
    assert threading.active_count() <= threads
    assert handles() <= files
    assert owls.fixed_answer() == fixed
    return resident() - memory


def test_cancelled_streams_leave_nothing(owls: Owls) -> None:
    leaves_nothing(owls, 10, 50)


@pytest.mark.slow
def test_a_thousand_cancelled_streams_leave_nothing(owls: Owls) -> None:
    assert leaves_nothing(owls, 2500, 1000) <= 5 << 20


@pytest.mark.slow
def test_two_hundred_clients_for_a_minute(owls: Owls) -> None:
    fixed = owls.fixed_answer()
    few = load_of(owls.url, 8, 20)
    many = load_of(owls.url, 200, 60)
    owls.idle()
    goodput = [sum(load.tokens) / seconds for load, seconds in ((few, 20), (many, 60))]
    slowest = many.percentile(0.99)
    print(f"\ntokens/s with 8 clients {goodput[0]:.0f}, with 200 {goodput[1]:.0f}; Jain {many.jain:.3f};")
    print(f"{many.statuses}, p99 {slowest:.2f} s")
    assert set(few.statuses) == {"200"}
    assert set(many.statuses) <= {"200", "429", "503"}
    assert many.jain >= 0.9
    # Not 0.9: sending 128 of them away, again and again, and these clients themselves take from the same two
    # cores. 0.84 to 0.89 was measured.
    assert goodput[1] >= 0.8 * goodput[0]
    places = owls.service.limits.waiting + owls.engine.max_batch
    assert slowest <= 1.5 * places / (len(many.seconds) / 60)
    assert owls.fixed_answer() == fixed


@pytest.mark.slow
def test_ten_thousand_requests(owls: Owls) -> None:
    """Mixed ones: memory, handles, threads and blocks stay what they were after the first fifth."""
    fixed, rng = owls.fixed_answer(), random.Random(0)
    kinds: list[tuple[str, dict[str, Any], int]] = [
        ("/v1/chat/completions", {"messages": asking("Hello"), **FIXED, "max_tokens": 4}, 200),
        ("/v1/chat/completions", body(max_tokens=8), 200),
        (
            "/v1/chat/completions",
            {"messages": seen(), **FIXED, "n": 2, "temperature": 1, "max_tokens": 4},
            200,
        ),
        ("/v1/completions", {"prompt": "AI: ", **FIXED, "max_tokens": 4, "logprobs": 2}, 200),
        ("/tokenize", {"prompt": "hello"}, 200),
        ("/v1/chat/completions", {"messages": asking("x"), "model": "none"}, 404),
        ("/v1/chat/completions", {"messages": asking("word " * 3000), **FIXED}, 400),
        ("/v1/chat/completions", {"messages": asking("x", "data:image/png;base64,AAAA"), **FIXED}, 400),
    ]
    memory = []
    with owls.client() as client:
        for number in range(10_000):
            path, asked, status = rng.choice(kinds)
            assert client.post(path, json=asked).status_code == status
            if number % 100 == 99:
                memory.append(resident())
    first, last = memory[:20], memory[-20:]
    owls.idle()
    assert sum(last) <= 1.02 * sum(first)
    assert owls.held_blocks() == 0
    assert owls.fixed_answer() == fixed
