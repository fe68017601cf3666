"""A step that fails, a step that never ends: nobody waits for ever, and the next request is answered."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from owl_fast.engine.engine import Engine
from owl_fast.serving.heartbeat import EXIT_CODE, Heartbeat
from owl_fast.serving.limits import Limits
from owl_fast.serving.service import Service
from tests.serving.owls import FIXED, Owls, asking, events, nano, seen, serving
from tests.serving.waiting import PATIENCE, until

ROOT = Path(__file__).parents[2]
LONG = {"ignore_eos": True, "max_tokens": 400}


def break_at(monkeypatch: pytest.MonkeyPatch, engine: Engine, step: int, fault: Callable[[], object]) -> None:
    run, count = engine._runner.run, 0

    def broken(plan: Any) -> Any:
        nonlocal count
        count += 1
        if count == step:
            fault()
        return run(plan)

    monkeypatch.setattr(engine._runner, "run", broken)


def ask_several(owls: Owls) -> Iterator[httpx.Response]:
    """Two streams and two whole answers, at once."""
    replies: list[httpx.Response] = []
    with owls.client() as client:

        def ask(stream: bool) -> None:
            body = {"messages": seen(), **FIXED, **LONG, "stream": stream}
            replies.append(client.post("/v1/chat/completions", json=body))

        threads = [threading.Thread(target=ask, args=(n % 2 == 0,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "somebody still waits"
    yield from replies


def outcome(reply: httpx.Response) -> str | None:
    """The code of the error, whether it is a status or an event."""
    if reply.status_code != 200:
        return str(reply.json()["error"]["code"])
    if reply.headers["content-type"].startswith("text/event-stream"):
        *_, last = events(reply.text)
        return None if last == "[DONE]" else str(json.loads(last)["error"]["code"])
    return None


@pytest.mark.parametrize("fault", [RuntimeError, MemoryError, ZeroDivisionError])
@pytest.mark.parametrize("step", [1, 5, 40])
def test_a_step_that_fails(
    owls: Owls, monkeypatch: pytest.MonkeyPatch, fault: type[Exception], step: int
) -> None:
    before, failed = owls.fixed_answer(), owls.engine.stats().failed_steps

    def fail() -> None:
        raise fault("/a/path and 0x7f")

    with monkeypatch.context() as patch:
        break_at(patch, nano(), step, fail)
        replies = list(ask_several(owls))
    assert "internal_error" in {outcome(reply) for reply in replies}
    assert {outcome(reply) for reply in replies} <= {"internal_error", None}
    assert not any("/a/path" in reply.text or fault.__name__ in reply.text for reply in replies)
    assert owls.engine.stats().failed_steps == failed + 1
    with owls.client() as client:
        assert client.get("/ready").status_code == 200
    assert owls.fixed_answer() == before
    owls.idle()


def test_a_step_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not ready, then everybody is told, then the process is to end."""
    limits = dataclasses.replace(Limits(), heartbeat=0.3, hang=1.0)
    release, left = threading.Event(), threading.Event()

    def watched(service: Service) -> Callable[[object], Any]:
        @contextlib.asynccontextmanager
        async def lifespan(_: object) -> AsyncIterator[None]:
            task = asyncio.create_task(Heartbeat(service, left.set).watch())
            yield
            task.cancel()

        return lifespan

    try:
        with monkeypatch.context() as patch, serving(limits=limits, lifespan=watched) as owls:
            break_at(patch, nano(), 5, lambda: release.wait(PATIENCE))
            replies: list[httpx.Response] = []
            asking_all = threading.Thread(target=lambda: replies.extend(ask_several(owls)))
            asking_all.start()
            with owls.client() as client:
                until(lambda: client.get("/ready").status_code == 503)
                assert client.get("/ready").json()["error"]["code"] == "not_ready"
                assert client.get("/health").status_code == 200
            begin = time.monotonic()
            asking_all.join(PATIENCE)
            assert time.monotonic() - begin < 10
            assert {outcome(reply) for reply in replies} == {"model_failed"}
            assert left.wait(PATIENCE)
            release.set()
            owls.idle()
    finally:
        release.set()


def test_nothing_to_do_is_no_silence(owls: Owls) -> None:
    owls.idle()
    assert owls.engine.stats().silent_seconds == 0


HANGING = """
import sys, threading
from owl_fast.engine.runner import Runner
from owl_fast.serve import main
run = Runner.run
def hang(self, plan):
    if threading.current_thread().name == "owl_fast-steps":
        {how}
    return run(self, plan)
Runner.run = hang
sys.exit(main(["--port", "0", "--device", "cpu"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("threading.Event().wait()", EXIT_CODE),
        ("__import__('time').sleep(1000)", EXIT_CODE),
        ("__import__('os')._exit(9)", 9),
    ],
)
def test_the_process_ends_with_a_code(how: str, code: int) -> None:
    program = [sys.executable, "-c", HANGING.format(how=how)]
    process = subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[1]
        body = {"messages": asking("Hello"), **FIXED, "stream": True}
        begin = time.monotonic()
        with contextlib.suppress(httpx.TransportError):
            httpx.post(f"{url}/v1/chat/completions", json=body, timeout=PATIENCE, trust_env=False)
        assert time.monotonic() - begin <= 10
        assert process.wait(20) == code
    finally:
        process.kill()
        process.communicate()
