"""The loop between threads: who steps, who waits, and that nobody is locked out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor

from owl_fast.engine.loop import Loop
from owl_fast.engine.sampling import SamplingParams
from owl_fast.engine.scheduler import StepPlan
from tests.engine.fakes import BOS, FakeRunner, expected, make_loop, make_request, run_to_end

PATIENCE = 20  # seconds; only a failing test waits that long
LONG = SamplingParams(max_tokens=40, ignore_eos=True)


class WatchedRunner(FakeRunner):
    """Calls `during` inside every step."""

    def __init__(self, during: Callable[[], None]) -> None:
        super().__init__(24)
        self.during = during

    def run(self, plan: StepPlan) -> Tensor:
        self.during()
        return super().run(plan)


def loop_with(during: Callable[[], None], **options: Any) -> Loop:
    loop = make_loop(**options)
    loop.runner = WatchedRunner(during)
    return loop


@contextmanager
def stepping(loop: Loop) -> Any:
    """Two threads that step without a pause."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            loop.step()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()


def test_steps_never_overlap_and_every_thread_gets_its_answer() -> None:
    inside = []

    def during() -> None:
        inside.append(1)
        assert len(inside) == 1
        inside.pop()

    loop = loop_with(during)

    def ask(number: int) -> list[int]:
        request = make_request([BOS, number])
        assert loop.complete([request])[0].finish_reason in ("stop", "length")
        return request.generated

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, range(3, 23)))
    assert answers == [expected(make_request([BOS, n])) for n in range(3, 23)]


def test_submitting_does_not_wait_for_a_step() -> None:
    entered, release = threading.Event(), threading.Event()

    def during() -> None:
        entered.set()
        assert release.wait(PATIENCE)

    loop = loop_with(during)
    first, second = make_request([BOS, 5]), make_request([BOS, 6])
    loop.submit(first)
    worker = threading.Thread(target=loop.step)
    worker.start()
    assert entered.wait(PATIENCE)
    loop.submit(second)
    assert loop.stats().requests == 2
    assert loop.stats().waiting == 1
    release.set()
    worker.join(PATIENCE)
    run_to_end(loop, first, second)


def test_a_guest_gets_in_between_the_steps_of_others() -> None:
    inside: list[int] = []

    def during() -> None:
        inside.append(1)
        time.sleep(0.001)  # lets the guest run if it could
        inside.pop()

    loop = loop_with(during, num_blocks=40)
    with stepping(loop):
        for _ in range(20):
            loop.submit(make_request([BOS, 5], LONG))
            with loop.between_steps():
                for _ in range(5):
                    assert inside == []
                    time.sleep(0.0002)


def test_a_cancelled_request_is_out_when_reap_returns() -> None:
    loop = loop_with(lambda: None, num_blocks=40)
    with stepping(loop):
        for _ in range(30):
            request = make_request([BOS, 5], LONG)
            loop.submit(request)
            request.cancelled = True
            loop.reap()
            assert request.finished


def test_ctrl_c_in_a_step_leaves_a_loop_that_steps() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    loop = loop_with(interrupt)
    runner = loop.runner
    assert isinstance(runner, WatchedRunner)
    first = make_request([BOS, 5])
    with pytest.raises(KeyboardInterrupt):
        loop.complete([first])
    assert first.finish_reason == "error"
    runner.during = lambda: None
    second = make_request([BOS, 6])
    assert loop.complete([second])[0].token_ids == expected(second)


def test_the_tally_adds_up() -> None:
    loop = make_loop()
    ends, cancelled, waits = make_request([BOS, 5]), make_request([BOS, 6], LONG), make_request([BOS, 7])
    loop.complete([ends])
    loop.submit(cancelled)
    loop.step()
    cancelled.cancelled = True
    loop.submit(waits)
    stats = loop.stats()
    assert (stats.requests, stats.running, stats.waiting, stats.answered) == (3, 1, 1, 1)
    run_to_end(loop, cancelled, waits)
    stats = loop.stats()
    assert (stats.answered, stats.cancelled, stats.failed, stats.running) == (2, 1, 0, 0)
    total = sum(len(request.generated) for request in (ends, cancelled, waits))
    assert (stats.usage.prompt_tokens, stats.usage.completion_tokens) == (6, total)
    assert stats.timings.predicted_n == total
    assert 0 < stats.busy_seconds <= stats.seconds
    assert stats.steps >= len(ends.generated)
