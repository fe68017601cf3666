"""Scheduler and loop on a fake model: any order of arrivals, steps and cancellations."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from owl_fast.engine.request import Request
from owl_fast.engine.sampling import SamplingParams
from owl_fast.lora import Adapter, LoraConfig
from tests.engine.fakes import BOS, VOCAB, FakeRunner, expected, make_loop, make_request, run_to_end

PARAMS = (
    SamplingParams(max_tokens=1),
    SamplingParams(max_tokens=9),
    SamplingParams(max_tokens=7, temperature=1.3, top_p=0.9, seed=11),
    SamplingParams(max_tokens=8, repetition_penalty=1.4, no_repeat_ngram=2),
    SamplingParams(max_tokens=6, beams=3, no_repeat_ngram=2, early_stopping=True),
    SamplingParams(max_tokens=5, beams=2, length_penalty=0.5),
)
ADAPTERS = (None, None, Adapter(LoraConfig(), {}, {}), Adapter(LoraConfig(), {}, {}))
prompts = st.lists(st.integers(0, VOCAB - 1), min_size=0, max_size=18).map(lambda ids: [BOS, *ids])


class LoopMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = make_loop()
        self.requests: list[Request] = []

    @rule(prompt=prompts, params=st.sampled_from(PARAMS), adapter=st.sampled_from(ADAPTERS))
    def add(self, prompt: list[int], params: SamplingParams, adapter: Adapter | None) -> None:
        self.requests.append(make_request(prompt, params, adapter))
        self.loop.submit(self.requests[-1])

    @rule()
    def step(self) -> None:
        self.loop.step()

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.requests)).cancelled = True

    @invariant()
    def blocks_and_rows_are_bounded(self) -> None:
        scheduler = self.loop.scheduler
        held = {block for r in self.requests for s in r.sequences for block in s.table}
        assert len(held) + scheduler.allocator.free_blocks == scheduler.allocator.num_blocks
        assert sum(len(r.sequences) for r in scheduler.running) <= scheduler.max_batch
        assert self.loop.runner.largest_step <= scheduler.step_tokens

    def teardown(self) -> None:
        run_to_end(self.loop, *self.requests)
        assert self.loop.scheduler.allocator.free_blocks == self.loop.scheduler.allocator.num_blocks
        for request in self.requests:
            wanted = expected(request.prompt_ids, request.params)
            if request.finish_reason != "cancelled":
                assert request.generated == wanted
            elif request.beams is None:
                assert request.generated == wanted[: len(request.generated)]


LoopMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, derandomize=True
)
TestLoop = LoopMachine.TestCase


def test_cancelled_request_frees_its_blocks_in_one_step() -> None:
    loop = make_loop()
    stays, goes = make_request([BOS, 5, 6]), make_request([BOS, 7, 8, 9, 10])
    for request in (stays, goes):
        loop.submit(request)
    loop.step()
    goes.cancelled = True
    loop.step()
    assert goes.finish_reason == "cancelled"
    assert goes.sequences == []
    run_to_end(loop, stays)
    assert stays.generated == expected([BOS, 5, 6], stays.params)


def test_a_waiting_request_can_be_cancelled_before_it_starts() -> None:
    loop = make_loop(max_batch=1)
    first, second = make_request([BOS, 5]), make_request([BOS, 6])
    loop.submit(first)
    loop.submit(second)
    loop.step()
    second.cancelled = True
    loop.reap()
    assert second.finish_reason == "cancelled"
    assert second.generated == []
    assert [event.finish_reason for event in second.events] == ["cancelled"]


def test_requests_start_in_order_of_arrival_and_only_when_they_fit() -> None:
    loop = make_loop(num_blocks=8, max_batch=4)  # 32 positions
    large = make_request([BOS] * 20, SamplingParams(max_tokens=5))  # 24 positions: 6 blocks
    larger = make_request([BOS] * 10, SamplingParams(max_tokens=5))  # 14: 4 blocks, waits
    small = make_request([BOS], SamplingParams(max_tokens=3))  # would fit, but came later
    for request in (large, larger, small):
        loop.submit(request)
    loop.step()
    assert loop.scheduler.running == [large]
    run_to_end(loop, large, larger, small)


def test_another_adapter_waits_and_nobody_overtakes_it() -> None:
    loop = make_loop()
    adapter = Adapter(LoraConfig(), {}, {})
    first, second, third = (make_request([BOS, 5], adapter=name) for name in (None, adapter, None))
    for request in (first, second, third):
        loop.submit(request)
    loop.step()
    assert loop.scheduler.running == [first]
    run_to_end(loop, first)
    loop.step()
    assert loop.scheduler.running == [second]
    run_to_end(loop, second, third)


def test_running_answers_go_on_while_a_long_prompt_is_computed_in_chunks() -> None:
    loop = make_loop(num_blocks=40, step_tokens=8)
    answer = make_request([BOS, 4], SamplingParams(max_tokens=20, ignore_eos=True))
    loop.submit(answer)
    loop.step()
    prompt = make_request([BOS] * 30)
    loop.submit(prompt)
    for steps in range(1, 5):
        loop.step()
        assert len(answer.generated) == 1 + steps
        assert len(prompt.generated) == 0
    loop.step()
    assert len(prompt.generated) == 1


def test_numbers_that_are_not_finite_end_their_request_only() -> None:
    loop = make_loop()
    well, ill = make_request([BOS, 5]), make_request([BOS, 6], SamplingParams(max_tokens=6, ignore_eos=True))
    runner = loop.runner
    assert isinstance(runner, FakeRunner)
    answer = expected([BOS, 6], SamplingParams(max_tokens=2, ignore_eos=True))
    runner.poison.add((BOS, 6, *answer))
    for request in (well, ill):
        loop.submit(request)
    run_to_end(loop, well, ill)
    result = ill.output
    assert result.finish_reason == "error"
    assert result.token_ids == answer
    assert "not finite" in (result.error or "")
    assert well.output.token_ids == expected([BOS, 5], well.params)
    assert loop.scheduler.allocator.free_blocks == loop.scheduler.allocator.num_blocks


def test_a_step_that_fails_takes_the_running_requests_and_leaves_a_clean_engine() -> None:
    class Broken(FakeRunner):
        def run(self, plan: object) -> object:  # type: ignore[override]
            raise RuntimeError("out of memory")

    loop = make_loop(max_batch=1)
    works, loop.runner = loop.runner, Broken(24)  # type: ignore[assignment]
    running, waiting = make_request([BOS, 5]), make_request([BOS, 6])
    loop.submit(running)
    loop.submit(waiting)
    with pytest.raises(RuntimeError, match="out of memory"):
        loop.step()
    assert running.finish_reason == "error"
    assert loop.scheduler.allocator.free_blocks == loop.scheduler.allocator.num_blocks
    loop.runner = works
    run_to_end(loop, waiting)
    assert waiting.generated == expected([BOS, 6], waiting.params)


def test_forbidding_every_token_is_an_error_of_that_request() -> None:
    loop = make_loop(num_blocks=40)
    request = make_request([BOS], SamplingParams(max_tokens=VOCAB + 3, no_repeat_ngram=1, ignore_eos=True))
    loop.submit(request)
    run_to_end(loop, request)
    assert request.finish_reason == "error"
    assert len(request.generated) == VOCAB - 1  # BOS counts as seen
