"""When something goes wrong in a step: whom it hits, and that the rest goes on."""

from __future__ import annotations

import pytest
import torch

from owl_fast.engine.pictures import Picture
from owl_fast.engine.sampling import SamplingParams
from owl_fast.engine.stream import Stream
from owl_fast.lora import Adapter, LoraConfig
from tests.engine.fakes import (
    BOS,
    FakeRunner,
    Oracle,
    expected,
    expected_scores,
    make_loop,
    make_request,
    run_alone,
    run_to_end,
    runner_of,
)

LONG = SamplingParams(max_tokens=20, ignore_eos=True)


def test_numbers_that_are_not_finite_end_their_request_only() -> None:
    loop = make_loop()
    well, ill = make_request([BOS, 5]), make_request([BOS, 6], SamplingParams(max_tokens=6, ignore_eos=True))
    answer = expected(ill, SamplingParams(max_tokens=2, ignore_eos=True))
    runner_of(loop).poison.add((BOS, 6, *answer))
    for request in (well, ill):
        loop.submit(request)
    run_to_end(loop, well, ill)
    result = ill.output
    assert result.finish_reason == "error"
    assert result.token_ids == answer
    assert "not finite" in (result.error or "")
    assert well.output.token_ids == expected(well)
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
    assert waiting.generated == expected(waiting)


def test_numbers_that_are_not_finite_are_not_kept() -> None:
    """One bad step, not one for everybody who begins alike."""
    loop, start = make_loop(), [BOS, *range(3, 14)]
    runner_of(loop).poison.add((*start, 5))
    ill = make_request([*start, 5])
    run_alone(loop, ill)
    assert ill.finish_reason == "error"
    runner_of(loop).poison.clear()
    well = make_request([*start, 6])
    run_alone(loop, well)
    assert well.generated == expected(well)
    assert well.usage.cached_tokens == 0


def test_beams_that_are_computed_anew_go_on_together() -> None:
    for keep in (True, False):
        loop = make_loop(num_blocks=40, keep=keep)
        beams = make_request([BOS, *range(3, 18)], SamplingParams(max_tokens=6, beams=3, ignore_eos=True))
        loop.submit(beams)
        for _ in range(4):
            loop.step()
        assert len(beams.sequences) == 3
        loop.scheduler.preempt(beams)
        loop.scheduler.allocator.forget_contents()
        run_to_end(loop, beams)
        assert beams.generated == expected(beams)


def test_beams_fill_the_memory_to_the_last_block() -> None:
    loop = make_loop(num_blocks=2, max_batch=2)
    beams = make_request([BOS], SamplingParams(max_tokens=4, beams=2, ignore_eos=True))
    run_alone(loop, beams)
    assert beams.generated == expected(beams)


def test_scores_that_are_computed_anew_stand_there_once() -> None:
    loop = make_loop(num_blocks=40)
    scored = make_request([BOS, *range(3, 20)], score_from=6)
    loop.submit(scored)
    loop.step()
    loop.step()
    assert scored.logprobs
    loop.scheduler.preempt(scored)
    run_to_end(loop, scored)
    assert scored.logprobs == pytest.approx(expected_scores(scored))


def test_what_a_step_raises_is_no_business_of_those_that_wait() -> None:
    loop = make_loop(max_batch=1)
    running, waiting = make_request([BOS, 5]), make_request([BOS, 6])
    first, second = Stream(loop, [running]), Stream(loop, [waiting])
    next(first)
    runner_of(loop).breaks = "run"
    with pytest.raises(MemoryError):
        loop.step_for([running])
    runner_of(loop).breaks = ""
    assert [event.finish_reason for event in second][-1] in ("stop", "length")

    running = make_request([BOS, 5])
    loop.submit(running)
    loop.step()
    loop.submit(waiting := make_request([BOS, 6]))
    runner_of(loop).breaks = "run"
    loop.step_for([waiting])
    runner_of(loop).breaks = ""
    assert running.finish_reason == "error"
    run_to_end(loop, waiting)
    assert waiting.generated == expected(waiting)


def test_adapters_that_cannot_be_held_end_everybody_and_the_next_request_is_answered() -> None:
    loop = make_loop(max_batch=1)
    requests = [make_request([BOS, 5]), make_request([BOS, 6])]
    for request in requests:
        loop.submit(request)
    runner_of(loop).breaks = "hold_adapters"
    with pytest.raises(MemoryError):
        loop.step()
    assert [request.finish_reason for request in requests] == ["error", "error"]
    runner_of(loop).breaks = ""
    run_alone(loop, after := make_request([BOS, 7]))
    assert after.generated == expected(after)


def test_a_step_encodes_only_the_pictures_it_computes() -> None:
    loop = make_loop(num_blocks=60)
    shown = [Picture(torch.full((3, 2, 2), float(i))) for i in range(6)]
    request = make_request([BOS, *[-1] * 18, 4], pictures=shown)
    loop.submit(request)
    for known in (2, 5, 6):  # steps of seven positions, three for each picture
        loop.step()
        assert sum(picture.rows is not None for picture in shown) == known
    run_to_end(loop, request)
    assert request.generated == expected(request)
    assert loop.stats().pictures == 6


def test_nobody_gives_way_to_one_that_could_not_start() -> None:
    alone = Adapter(LoraConfig(), {}, {"language_model.model.norm.weight": torch.ones(1)})
    loop = make_loop(num_blocks=60, max_batch=4)
    many = [make_request([BOS, i], LONG, client="many") for i in range(4)]
    for request in many:
        loop.submit(request)
    loop.step()
    loop.submit(few := make_request([BOS, 9], LONG, adapter=alone, client="few"))
    run_to_end(loop, *many)
    assert loop.stats().preemptions == 0
    run_to_end(loop, few)


def test_nobody_gives_way_to_one_that_waits_for_a_beginning() -> None:
    loop = make_loop(num_blocks=60, max_batch=4, step_tokens=5)
    start = [BOS, *range(3, 22)]
    many = [make_request([BOS, i], LONG, client="many") for i in range(3)]
    for request in (*many, first := make_request([*start, 1], LONG, client="many")):
        loop.submit(request)
    loop.step()
    loop.submit(few := make_request([*start, 2], LONG, client="few"))
    while first.sequences[0].computed < len(start):
        loop.step()
        assert loop.stats().preemptions == 0
    run_to_end(loop, *many, first, few)
    assert few.generated == expected(few)


def test_guesses_keep_within_a_step() -> None:
    loop = make_loop(num_blocks=40, step_tokens=4, guessed_rows=30)
    request = make_request([BOS, 4, 5, 4, 5, 4, 5], LONG)
    request.guesser = Oracle(request)
    run_alone(loop, request)
    assert request.generated == expected(request)
    assert runner_of(loop).largest_step == 4
