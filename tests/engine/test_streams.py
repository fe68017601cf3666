"""Answers that are streamed: read in turn, cancelled, left early, ended by a stop string, drawn by a seed."""

from __future__ import annotations

import functools
import gc
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from owl_fast import Engine, SamplingParams
from tests.engine.golden_engines import CASES, assert_same, case_of, engine_of, held_blocks


@pytest.fixture
def engine() -> Engine:
    return engine_of("micro")


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}, {"beams": 2}], ids=str)
def test_a_stream_gives_the_same_answer(engine: Engine, options: dict[str, Any]) -> None:
    request = case_of("micro", "two_images")
    out = engine.generate(request["prompt"], images=request["images"], max_tokens=20, **options)
    stream = engine.stream(request["prompt"], images=request["images"], max_tokens=20, **options)
    events = list(stream)
    assert "".join(event.text for event in events) == out.text
    assert [token for event in events for token in event.token_ids] == out.token_ids
    assert [event.finish_reason for event in events[:-1]] == [None] * (len(events) - 1)
    assert events[-1].finish_reason == out.finish_reason
    if "beams" not in options:
        assert [event.logprob for event in events] == out.logprobs
    assert_same(stream.output, out)


def test_two_streams_read_in_turn_do_not_touch_each_other(engine: Engine) -> None:
    requests = [case_of("micro", case) for case in CASES[:2]]
    alone = [engine.generate(r["prompt"], images=r["images"], max_tokens=10).token_ids for r in requests]
    streams = [engine.stream(r["prompt"], images=r["images"], max_tokens=10) for r in requests]
    turns = list(zip(*streams, strict=True))
    assert [
        [token for event in events for token in event.token_ids] for events in zip(*turns, strict=True)
    ] == alone


def test_threads_share_an_engine(engine: Engine) -> None:
    prompts = [f"Human: {n}\nAI: " for n in range(6)]
    alone = [engine.generate(prompt, max_tokens=8).token_ids for prompt in prompts]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda prompt: engine.generate(prompt, max_tokens=8).token_ids, prompts))
    assert together == alone


def test_a_thousand_cancelled_streams_give_everything_back(engine: Engine) -> None:
    rng = random.Random(3)
    scheduler = engine._loop.scheduler
    for _ in range(50):
        streams = [
            engine.stream(
                f"{rng.random()} AI: ", max_tokens=9, n=rng.choice((1, 4)), client=str(rng.random())
            )
            for i in range(20)
        ]
        for stream in streams:
            for _ in range(rng.randrange(4)):
                next(stream, None)
            stream.cancel()
        engine._loop.reap()
        assert scheduler.allocator.free_blocks == scheduler.allocator.num_blocks
        assert (scheduler.running, scheduler.waiting.clients, len(scheduler.waiting)) == ([], (), 0)
    assert engine.generate("AI: ", max_tokens=3).usage.completion_tokens <= 3


def test_a_cancelled_stream_keeps_what_was_said(engine: Engine) -> None:
    request = case_of("micro", "one_image")
    whole = engine.generate(request["prompt"], images=request["images"], max_tokens=20)
    stream = engine.stream(request["prompt"], images=request["images"], max_tokens=20)
    events = [next(stream) for _ in range(5)]
    stream.cancel()
    events += list(stream)
    assert events[-1].finish_reason == "cancelled"
    assert stream.output.token_ids == whole.token_ids[:5]
    assert stream.output.text == "".join(event.text for event in events)
    assert held_blocks(engine) == 0


@pytest.mark.parametrize("beams", [1, 3])
def test_streams_left_early_free_everything(engine: Engine, beams: int) -> None:
    request = case_of("micro", "one_image")
    for after in range(4):
        with engine.stream(request["prompt"], images=request["images"], max_tokens=9, beams=beams) as stream:
            if beams == 1:
                for _ in range(after):
                    next(stream)
            elif after:
                for _ in range(after):
                    engine._loop.step()
            assert after == 0 or held_blocks(engine) > 0
        assert held_blocks(engine) == 0
    dropped = engine.stream(request["prompt"], images=request["images"], max_tokens=9)
    next(dropped)
    del dropped
    gc.collect()
    engine.generate("AI: ", max_tokens=1)
    assert held_blocks(engine) == 0


def test_stop_strings_end_the_answer_and_never_show(engine: Engine) -> None:
    request = case_of("micro", "two_turns")
    ask = functools.partial(engine.generate, request["prompt"], images=request["images"], max_tokens=24)
    whole = ask().text
    stop = whole[9:12]
    wanted = whole[: whole.index(stop)]
    out = ask(stop=stop)
    assert (out.text, out.finish_reason) == (wanted, "stop")
    assert len(out.token_ids) < 24
    shown = ""
    for event in engine.stream(request["prompt"], images=request["images"], max_tokens=24, stop=["@@", stop]):
        shown += event.text
        assert wanted.startswith(shown)
    assert shown == wanted
    assert ask(stop="never said").text == whole


def test_the_end_token_ends_the_answer(engine: Engine) -> None:
    request = case_of("micro", "one_image")
    ids = engine.generate(request["prompt"], images=request["images"], max_tokens=24).token_ids
    loop = engine._loop
    before = loop.eos_id
    loop.eos_id = ids[6]
    try:
        end = ids.index(ids[6])
        out = engine.generate(request["prompt"], images=request["images"], max_tokens=24)
        assert (out.token_ids, out.finish_reason) == (ids[: end + 1], "stop")
        ignored = engine.generate(request["prompt"], images=request["images"], max_tokens=24, ignore_eos=True)
        assert ignored.token_ids == ids
        later = engine.generate(
            request["prompt"], images=request["images"], max_tokens=24, min_tokens=end + 1
        )
        assert later.token_ids[end] != ids[6]
    finally:
        loop.eos_id = before


def test_same_seed_same_answer_whatever_runs_beside_it(engine: Engine) -> None:
    request = case_of("micro", "one_image")
    params = SamplingParams(max_tokens=16, temperature=1.5, seed=42)
    state = torch.get_rng_state()
    alone = engine.generate(request["prompt"], params, images=request["images"])
    others = [engine.stream(f"AI: {n}", max_tokens=20, temperature=2.0) for n in range(3)]
    beside = engine.generate(request["prompt"], params, images=request["images"])
    assert torch.equal(torch.get_rng_state(), state)
    for stream in others:
        stream.close()
    assert beside.token_ids == alone.token_ids
    assert (
        engine.generate(request["prompt"], params, images=request["images"], seed=43).token_ids
        != alone.token_ids
    )
    fresh = {tuple(engine.generate("AI: ", max_tokens=16, temperature=2.0).token_ids) for _ in range(3)}
    assert len(fresh) > 1


def test_reported_log_probs_are_the_models_own(engine: Engine) -> None:
    plain = engine.generate("Human: hello\nAI: ", max_tokens=1, logprobs=5)
    bent = engine.generate("Human: hello\nAI: ", max_tokens=1, logprobs=5, temperature=0.3, top_k=2, seed=1)
    assert plain.top_logprobs is not None
    assert bent.top_logprobs == plain.top_logprobs
    assert bent.logprobs[0] == plain.top_logprobs[0][bent.token_ids[0]]
    assert list(plain.top_logprobs[0].values()) == sorted(plain.top_logprobs[0].values(), reverse=True)
