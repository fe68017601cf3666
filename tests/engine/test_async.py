"""Answers for asyncio: the same ones, without blocking the event loop and without anything left behind."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
from torch import Tensor

from owl_fast import Engine
from owl_fast.engine.async_stream import AsyncStream
from owl_fast.engine.outputs import Event
from owl_fast.errors import ContextLengthError, ImageError, OwlError, ParameterError
from owl_fast.machine import cpu_count
from tests.engine.golden_engines import engine_of, held_blocks
from tests.golden_data import image_files

PATIENCE = 20  # seconds; only a failing test waits that long
PROMPT, IMAGES = "Human: <image>\nHuman: what?\nAI: ", image_files()[:1]


@pytest.fixture
def engine() -> Engine:
    return engine_of("micro")


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("owl_fast")]


async def idle(engine: Engine) -> None:
    """Wait until nothing is held and no thread is left."""
    for _ in range(1000):
        if not our_threads() and held_blocks(engine) == 0:
            return
        await asyncio.sleep(PATIENCE / 1000)
    raise AssertionError(f"left behind: {our_threads()}, {held_blocks(engine)} blocks")


async def read(stream: Any) -> list[Event]:
    return [event async for event in stream]


def test_the_same_answer_as_from_generate(engine: Engine) -> None:
    out = engine.generate(PROMPT, images=IMAGES, max_tokens=12, temperature=0.9, seed=4)

    async def ask() -> None:
        stream = engine.astream(PROMPT, images=IMAGES, max_tokens=12, temperature=0.9, seed=4)
        with pytest.raises(OwlError, match="still being generated"):
            _ = stream.output
        events = await read(stream)
        assert "".join(event.text for event in events) == out.text == stream.output.text
        assert [token for event in events for token in event.token_ids] == out.token_ids
        assert [event.finish_reason for event in events] == [None] * 11 + [out.finish_reason]
        assert await read(stream) == []
        await idle(engine)

    asyncio.run(ask())


def test_many_at_once_beside_a_blocking_one(engine: Engine) -> None:
    prompts = [f"Human: {n}\nAI: " for n in range(7)]
    alone = [engine.generate(prompt, max_tokens=10).token_ids for prompt in prompts]

    async def ask() -> None:
        answers = [read(engine.astream(prompt, max_tokens=10)) for prompt in prompts[:-1]]
        blocking = asyncio.to_thread(engine.generate, prompts[-1], max_tokens=10)
        *streams, last = await asyncio.gather(*answers, blocking)
        assert [[t for e in events for t in e.token_ids] for events in streams] == alone[:-1]
        assert last.token_ids == alone[-1]
        await idle(engine)

    asyncio.run(ask())


def test_the_event_loop_runs_while_the_model_does(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    run, entered, release = engine._runner.run, threading.Event(), threading.Event()

    def held_up(plan: Any) -> Tensor:
        entered.set()
        assert release.wait(PATIENCE), "the event loop was blocked by a step"
        return run(plan)

    monkeypatch.setattr(engine._runner, "run", held_up)

    async def ask() -> None:
        answer = asyncio.create_task(read(engine.astream("AI: ", max_tokens=2)))
        while not entered.is_set():
            await asyncio.sleep(0.001)
        release.set()  # only a free event loop comes here
        assert len(await answer) == 2

    asyncio.run(ask())


@pytest.mark.parametrize("how", ["task", "drop", "cancel", "context"])
def test_cancelling_frees_the_place_within_a_step(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Steps are let through one by one: three for three events, and the one that is under way then."""
    run, gate, steps = engine._runner.run, threading.Semaphore(3), []

    def gated(plan: Any) -> Tensor:
        steps.append(plan)
        assert gate.acquire(timeout=PATIENCE), "a step began after the answer was cancelled"
        return run(plan)

    monkeypatch.setattr(engine._runner, "run", gated)

    async def three(stream: AsyncStream) -> None:
        for _ in range(3):
            await stream.__anext__()
        asyncio.get_running_loop().call_later(0.01, gate.release)

    async def talk(reached: asyncio.Event) -> None:
        stream = engine.astream(PROMPT, images=IMAGES, max_tokens=200, ignore_eos=True)
        if how == "context":
            async with stream:
                await three(stream)
            assert held_blocks(engine) == 0
            return
        await three(stream)
        reached.set()
        if how == "cancel":
            stream.cancel()
        if how in ("task", "cancel"):
            rest = await read(stream)
            assert rest[-1].finish_reason == "cancelled"
            assert len(stream.output.token_ids) == len(steps)

    async def ask() -> None:
        reached = asyncio.Event()
        task = asyncio.create_task(talk(reached))
        if how == "task":
            await reached.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await asyncio.wait([task])
        await idle(engine)
        assert task.cancelled() or task.exception() is None

    asyncio.run(ask())
    assert len(steps) <= 4


def test_what_does_not_fit_comes_out_at_the_first_event(engine: Engine) -> None:
    messages = [{"role": "user", "content": [{"type": "image", "image": "none.png"}]}]

    async def ask(error: type[OwlError], *arguments: Any, **options: Any) -> None:
        with pytest.raises(error):
            await read(engine.astream(*arguments, **options))
        await idle(engine)

    asyncio.run(ask(ImageError, messages))
    asyncio.run(ask(ContextLengthError, "word " * 3000))
    asyncio.run(ask(ParameterError, "AI: ", temprature=1))
    asyncio.run(ask(ParameterError, "AI: ", adapter="none"))


def test_prompts_can_be_read_before_they_are_computed(engine: Engine) -> None:
    async def ask() -> None:
        stream = engine.astream(PROMPT, images=IMAGES, max_tokens=4, n=2)
        usage = engine.generate(PROMPT, images=IMAGES, max_tokens=1).usage
        assert await stream.prepare() == await stream.prepare() == 2 * usage.prompt_tokens
        assert not stream.started
        assert engine.stats().running == engine.stats().waiting == 0
        events = await read(stream)
        assert stream.started
        assert [event.index for event in events if event.finish_reason] == [0, 1]
        with pytest.raises(ContextLengthError):
            await engine.astream("word " * 3000).prepare()
        await idle(engine)

    asyncio.run(ask())


def test_several_prompts_are_counted_through(engine: Engine) -> None:
    prompts: list[Any] = ["Human: a\nAI: ", {"prompt": PROMPT, "images": IMAGES}, "Human: b\nAI: "]
    alone = [one for first in engine.generate(prompts, max_tokens=6, n=2) for one in (first, *first.others)]

    async def ask() -> None:
        stream = engine.astream(prompts, max_tokens=6, n=2)
        events = await read(stream)
        for index, answer in enumerate(alone):
            tokens = [token for event in events if event.index == index for token in event.token_ids]
            assert tokens == answer.token_ids
        assert [one.token_ids for one in (stream.output, *stream.output.others)] == [
            one.token_ids for one in alone
        ]
        await idle(engine)

    asyncio.run(ask())


def test_who_wants_it_whole_gets_the_ends(engine: Engine) -> None:
    async def ask() -> None:
        for first in (True, False):
            stream = engine.astream(PROMPT, images=IMAGES, max_tokens=9, ignore_eos=True)
            if first:
                await stream.prepare()
            stream.skip_to_the_ends()
            (event,) = await read(stream)
            assert (event.finish_reason, len(stream.output.token_ids)) == ("length", 9)
        await idle(engine)

    asyncio.run(ask())


def test_waiting_with_a_limit(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    run, gate = engine._runner.run, threading.Event()

    def held_up(plan: Any) -> Tensor:
        assert gate.wait(PATIENCE)
        return run(plan)

    monkeypatch.setattr(engine._runner, "run", held_up)

    async def ask() -> None:
        stream = engine.astream("AI: ", max_tokens=3, ignore_eos=True)
        assert await stream.next(0.01) is None
        assert await stream.next(0.01) is None
        gate.set()
        found = [await stream.next(PATIENCE) for _ in range(3)]
        assert [len(event.token_ids) for event in found if event is not None] == [1, 1, 1]
        with pytest.raises(StopAsyncIteration):
            await stream.next(PATIENCE)
        await idle(engine)

    asyncio.run(ask())


def test_a_reader_can_be_told_that_it_is_over(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while a step hangs."""
    run, gate = engine._runner.run, threading.Event()

    def hanging(plan: Any) -> Tensor:
        assert gate.wait(PATIENCE)
        return run(plan)

    async def ask() -> None:
        stream = engine.astream("AI: ", max_tokens=200, ignore_eos=True)
        await stream.__anext__()
        monkeypatch.setattr(engine._runner, "run", hanging)
        asyncio.get_running_loop().call_later(0.01, stream.fail, LookupError("over"))
        with pytest.raises(LookupError, match="over"):
            await read(stream)
        assert engine.stats().silent_seconds > 0
        gate.set()
        await idle(engine)
        assert engine.stats().silent_seconds == 0

    asyncio.run(ask())


def test_no_more_threads_read_than_there_are_cores(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    read_prompt, most = type(engine._reader).read, [0]

    def counting(*arguments: Any) -> Any:
        most[0] = max(most[0], sum(name == "owl_fast-read" for name in our_threads()))
        return read_prompt(*arguments)

    monkeypatch.setattr(type(engine._reader), "read", counting)

    async def ask() -> None:
        await asyncio.gather(
            *(engine.astream(f"Human: {n}\nAI: ", max_tokens=1).prepare() for n in range(50))
        )
        await idle(engine)

    asyncio.run(ask())
    assert 1 <= most[0] <= max(cpu_count(), 2)


def test_a_failing_step_ends_the_answers_it_took_along(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    healthy = engine.generate("AI: ", max_tokens=4)

    def broken(plan: Any) -> Tensor:
        raise RuntimeError("out of memory")

    async def ask() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(engine._runner, "run", broken)
            with pytest.raises(OwlError, match="the step failed: RuntimeError"):
                await read(engine.astream("AI: ", max_tokens=4))
        events = await read(engine.astream("AI: ", max_tokens=4))
        assert [token for event in events for token in event.token_ids] == healthy.token_ids
        await idle(engine)

    asyncio.run(ask())
    assert "out of memory" in caplog.text


def test_a_closed_event_loop_leaves_no_thread(engine: Engine) -> None:
    loop = asyncio.new_event_loop()
    stream = engine.astream("AI: ", max_tokens=200, ignore_eos=True)
    loop.run_until_complete(stream.__anext__())
    loop.close()
    asyncio.run(idle(engine))


def test_a_task_cancelled_while_its_picture_is_read(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, release = threading.Event(), threading.Event()
    read_prompt = type(engine._reader).read

    def slow(*arguments: Any) -> Any:
        entered.set()
        assert release.wait(PATIENCE)
        return read_prompt(*arguments)

    monkeypatch.setattr(type(engine._reader), "read", slow)

    async def ask() -> None:
        task = asyncio.create_task(read(engine.astream("AI: ")))
        while not entered.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        release.set()
        await idle(engine)

    before = engine.stats().requests
    asyncio.run(ask())
    assert engine.stats().requests == before
