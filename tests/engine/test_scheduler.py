"""Scheduler and loop on a fake model: any order of arrivals, steps and cancellations."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from owl_fast.engine.pictures import Picture
from owl_fast.engine.request import Request
from owl_fast.engine.sampling import SamplingParams
from owl_fast.lora import Adapter, LoraConfig
from owl_fast.prompts import IMAGE_ID
from tests.engine.fakes import (
    BLOCK,
    BOS,
    VOCAB,
    Oracle,
    expected,
    expected_scores,
    make_loop,
    make_request,
    run_alone,
    run_to_end,
    runner_of,
)

PARAMS = (
    SamplingParams(max_tokens=1),
    SamplingParams(max_tokens=9),
    SamplingParams(max_tokens=7, temperature=1.3, top_p=0.9, seed=11),
    SamplingParams(max_tokens=8, repetition_penalty=1.4, no_repeat_ngram=2),
    SamplingParams(max_tokens=6, beams=3, no_repeat_ngram=2, early_stopping=True),
    SamplingParams(max_tokens=5, beams=2, length_penalty=0.5),
)
NEW_NORM = {"language_model.model.norm.weight": torch.ones(1)}
ADAPTERS = (None, None, Adapter(LoraConfig(), {}, {}), Adapter(LoraConfig(), {}, NEW_NORM))
PICTURES = [Picture(torch.full((3, 2, 2), float(i))) for i in range(3)]
# Few different ones, so that many begin alike; -1 is a row of a picture, of which each takes three.
prompts = st.one_of(
    st.lists(st.integers(0, VOCAB - 1), min_size=0, max_size=18),
    st.lists(st.integers(0, 1), min_size=0, max_size=18),
    st.lists(st.integers(0, 1), max_size=9).map(lambda ids: [3, -1, -1, -1, *ids]),
    st.just([4, -1, -1, -1, 5, -1, -1, -1]),
).map(lambda ids: [BOS, *ids])  # fmt: skip


class LoopMachine(RuleBasedStateMachine):
    """Memory is short: one request may need two thirds of it."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = make_loop()
        self.requests: list[Request] = []

    @initialize(keep=st.booleans())
    def begin(self, keep: bool) -> None:
        self.loop = make_loop(num_blocks=18, guessed_rows=6, keep=keep)

    @rule(
        prompt=prompts,
        params=st.sampled_from(PARAMS),
        adapter=st.sampled_from(ADAPTERS),
        client=st.sampled_from(("", "a", "b")),
        data=st.data(),
    )
    def add(
        self,
        prompt: list[int],
        params: SamplingParams,
        adapter: Adapter | None,
        client: str,
        data: st.DataObject,
    ) -> None:
        pictures = [data.draw(st.sampled_from(PICTURES)) for _ in range(prompt.count(IMAGE_ID) // 3)]
        self.requests.append(make_request(prompt, params, adapter, client, pictures))
        if params.beams == 1 and data.draw(st.booleans()):
            self.requests[-1].guesser = Oracle(self.requests[-1])
        self.loop.submit(self.requests[-1])

    @rule(ids=st.lists(st.integers(0, 1), min_size=2, max_size=18), data=st.data())
    def score(self, ids: list[int], data: st.DataObject) -> None:
        first = data.draw(st.integers(1, len(ids) - 1))
        self.requests.append(make_request(ids, score_from=first))
        self.loop.submit(self.requests[-1])

    @rule()
    def step(self) -> None:
        self.loop.step()

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.requests)).cancelled = True

    @precondition(lambda self: self.loop.scheduler.running)
    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        self.loop.scheduler.preempt(data.draw(st.sampled_from(self.loop.scheduler.running)))

    @precondition(lambda self: any(not request.cancelled for request in self.loop.scheduler.running))
    @rule(method=st.sampled_from(("run", "encode", "hold_adapters")))
    def a_step_fails(self, method: str) -> None:
        runner_of(self.loop).breaks = method
        with pytest.raises(MemoryError) if method != "encode" else suppress(MemoryError):
            self.loop.step()
        runner_of(self.loop).breaks = ""

    @rule()
    def everything_kept_is_forgotten(self) -> None:
        self.loop.scheduler.allocator.forget_contents()

    @rule()
    def poison_what_nobody_may_read(self) -> None:
        """Every slot of the blocks that nobody holds, but for what is known of them."""
        allocator = self.loop.scheduler.allocator
        for block in range(allocator.num_blocks):
            if allocator.owners(block) == 0:
                known = allocator.known(block)
                runner_of(self.loop).slots[block][known:] = [-99] * (BLOCK - known)

    @invariant()
    def blocks_and_rows_are_bounded(self) -> None:
        scheduler = self.loop.scheduler
        held = [block for r in self.requests for s in r.sequences for block in s.table]
        assert len(set(held)) + scheduler.allocator.free_blocks == scheduler.allocator.num_blocks
        for block in range(scheduler.allocator.num_blocks):
            assert scheduler.allocator.owners(block) == held.count(block)
        assert sum(len(r.sequences) for r in scheduler.running) <= scheduler.max_batch
        assert runner_of(self.loop).largest_step <= scheduler.step_tokens

    def teardown(self) -> None:
        run_to_end(self.loop, *self.requests)
        assert self.loop.scheduler.allocator.free_blocks == self.loop.scheduler.allocator.num_blocks
        assert not self.loop.scheduler.waiting.clients
        for request in self.requests:
            if request.score_from is not None:
                if request.finish_reason == "length":
                    assert request.logprobs == pytest.approx(expected_scores(request))
                continue
            wanted = expected(request)
            if request.finish_reason in ("stop", "length"):
                assert request.generated == wanted
            elif request.beams is None:
                assert request.generated == wanted[: len(request.generated)]


RUNS = settings(max_examples=500, stateful_step_count=50, deadline=None, derandomize=True)
LoopMachine.TestCase.settings = RUNS
TestLoop = LoopMachine.TestCase


@pytest.mark.slow
def test_orders_that_nobody_has_seen_before() -> None:
    run_state_machine_as_test(LoopMachine, settings=settings(RUNS, max_examples=20_000, derandomize=False))


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
    assert stays.generated == expected(stays)


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


def test_a_beginning_that_was_computed_is_not_computed_again() -> None:
    loop = make_loop()
    shared = list(range(3, 12))
    requests = [make_request([BOS, *shared, *rest]) for rest in ([5, 6], [7, 8, 9], [5, 6])]
    for request in requests:
        run_alone(loop, request)
        assert request.generated == expected(request)
    # Whole blocks and the common part of the next one; of the last request all but the position whose
    # logits are wanted.
    assert [request.usage.cached_tokens for request in requests] == [0, 10, 11]


def test_pictures_are_told_apart_by_their_content() -> None:
    loop = make_loop()
    red, also_red, blue = (Picture(torch.full((3, 2, 2), level)) for level in (1.0, 1.0, 2.0))
    cached = []
    for picture in (red, also_red, blue, red):
        request = make_request([BOS, 3, -1, -1, -1, 4], pictures=[picture])
        run_alone(loop, request)
        assert request.generated == expected(request)
        cached.append(request.usage.cached_tokens)
        assert (picture.rows is None) == (picture is also_red), "rows that are in the cache are not encoded"
    assert cached == [0, 5, 2, 5]


def test_adapters_share_nothing() -> None:
    loop = make_loop()
    for adapter in (None, Adapter(LoraConfig(), {}, {}), Adapter(LoraConfig(), {}, {})):
        request = make_request([BOS, *range(3, 12)], adapter=adapter)
        run_alone(loop, request)
        assert request.usage.cached_tokens == 0


def test_a_beginning_that_several_wait_for_is_computed_once() -> None:
    loop = make_loop(num_blocks=60, step_tokens=16)
    requests = [make_request([BOS, *range(3, 20), i]) for i in range(3)]
    for request in requests:
        loop.submit(request)
    loop.step()
    assert loop.scheduler.running == requests[:1]
    run_to_end(loop, *requests)
    assert [request.usage.cached_tokens for request in requests] == [0, 16, 16]
    # If the first one goes before it is through, the next computes it.
    requests = [make_request([BOS, *range(4, 21), i]) for i in range(3)]
    for request in requests:
        loop.submit(request)
    loop.step()
    requests[0].cancelled = True
    run_to_end(loop, *requests)
    assert [request.generated for request in requests[1:]] == [expected(r) for r in requests[1:]]


def test_memory_that_runs_short_takes_the_youngest_request_back() -> None:
    loop = make_loop(num_blocks=10, max_batch=4)  # 40 positions
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    requests = [make_request([BOS, i], params) for i in range(4)]  # 21 positions each
    for request in requests:
        loop.submit(request)
    run_to_end(loop, requests[0])
    assert loop.stats().preemptions > 0
    run_to_end(loop, *requests)
    for request in requests:
        assert request.generated == expected(request)


def test_clients_share_the_rows_evenly() -> None:
    loop = make_loop(num_blocks=60, max_batch=4)
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    many = [make_request([BOS, i], params, client="many") for i in range(8)]
    few = [make_request([BOS, 9, i], params, client="few") for i in range(3)]
    for request in many:
        loop.submit(request)
    loop.step()
    loop.step()
    assert loop.scheduler.running == many[:4]
    for request in few:
        loop.submit(request)
    loop.step()
    assert [request.client for request in loop.scheduler.running] == ["many", "many", "few", "few"]
    run_to_end(loop, *few)
    assert sum(request.finished for request in many) <= 5
    run_to_end(loop, *many)
    for request in (*many, *few):
        assert request.generated == expected(request)


def test_who_comes_late_is_not_owed_what_others_have_had() -> None:
    loop = make_loop(num_blocks=60, max_batch=1)
    params = SamplingParams(max_tokens=3, ignore_eos=True)
    early = [make_request([BOS, i], params, client="early") for i in range(6)]
    for request in early:
        loop.submit(request)
    run_to_end(loop, early[1])
    late = [make_request([BOS, 9, i], params, client="late") for i in range(4)]
    for request in late:
        loop.submit(request)
    run_to_end(loop, early[4], late[2])
    assert not early[5].finished
    assert not late[3].finished


def test_guesses_that_come_true_save_steps_and_change_nothing() -> None:
    for params in (
        SamplingParams(max_tokens=16, ignore_eos=True),
        replace(PARAMS[2], max_tokens=16, ignore_eos=True),
    ):
        loop = make_loop(guessed_rows=5)
        request = make_request([BOS, 5, 6], params)
        request.guesser = Oracle(request)
        run_alone(loop, request)
        assert request.generated == expected(request)
        stats = loop.stats()
        assert stats.steps < len(request.generated) == 16
        assert 0 < stats.guesses_right < stats.guesses


def test_different_adapters_run_together() -> None:
    loop = make_loop()
    adapters = (None, *(Adapter(LoraConfig(), {}, {"abstractor.vit_eos": torch.ones(1)}) for _ in range(2)))
    requests = [make_request([BOS, 5], adapter=adapter) for adapter in adapters]
    for request in requests:
        loop.submit(request)
    loop.step()
    assert loop.scheduler.running == requests
    run_to_end(loop, *requests)


def test_an_adapter_that_changes_the_language_model_runs_alone_and_nobody_overtakes_it() -> None:
    loop = make_loop()
    adapter = Adapter(LoraConfig(), {}, NEW_NORM)
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


def test_forbidding_every_token_is_an_error_of_that_request() -> None:
    loop = make_loop(num_blocks=40)
    request = make_request([BOS], SamplingParams(max_tokens=VOCAB + 3, no_repeat_ngram=1, ignore_eos=True))
    loop.submit(request)
    run_to_end(loop, request)
    assert request.finish_reason == "error"
    assert len(request.generated) == VOCAB - 1  # BOS counts as seen
