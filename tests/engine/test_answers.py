"""Several answers to one prompt: each that of its seed, the prompt and its pictures computed once."""

from __future__ import annotations

import asyncio
import functools
import re
from typing import Any

import pytest
from torch import Tensor

from owl_fast import Engine
from owl_fast.engine.blocks import BLOCK_SIZE
from owl_fast.engine.outputs import Event, Output
from owl_fast.engine.sampling import seed_of
from owl_fast.errors import OwlError, ParameterError, UnsupportedError
from tests.golden_data import Golden, image_files
from tests.tolerances import SAME_RUN

TEXT = "Human: What is this?\nAI: "
PROMPT, IMAGES = "Human: <image>\nHuman: What is in this picture?\nAI: ", image_files()[:1]
SAMPLED: dict[str, Any] = {"max_tokens": 8, "temperature": 1.3, "seed": 11}
TOGETHER: dict[str, Any] = {
    "max_tokens": 12,
    "temperature": 1.5,
    "seed": 4,
    "min_p": 0.01,
    "no_repeat_ngram": 2,
    "repetition_penalty": 1.2,
    "presence_penalty": 0.4,
    "frequency_penalty": 0.3,
    "logit_bias": {30: 2.0, 31: -5.0},
    "stop": "e",
    "min_tokens": 2,
    "logprobs": 2,
}


@functools.cache
def engine_() -> Engine:
    return Engine.from_pretrained(Golden("micro").checkpoint, device="cpu", dtype="fp32", max_batch=2)


@pytest.fixture
def engine() -> Engine:
    return engine_()


def fresh(engine: Engine, **options: Any) -> Engine:
    return Engine(engine.model, engine.tokenizer, engine.processor, max_batch=2, **options)


def all_of(output: Output) -> list[Output]:
    return [output, *output.others]


def parts(output: Output) -> list[tuple[Any, ...]]:
    return [(a.text, a.token_ids, a.logprobs, a.top_logprobs, a.finish_reason) for a in all_of(output)]


def assert_free(engine: Engine) -> None:
    scheduler = engine._loop.scheduler
    assert scheduler.allocator.free_blocks == scheduler.allocator.num_blocks
    assert not scheduler.running
    assert not scheduler.waiting


@pytest.mark.parametrize("options", [SAMPLED, TOGETHER], ids=["sampled", "together"])
def test_each_answer_is_that_of_its_seed(engine: Engine, options: dict[str, Any]) -> None:
    several = engine.generate(PROMPT, images=IMAGES, n=4, **options)
    assert len(several.others) == 3
    for index, answer in enumerate(all_of(several)):
        seed = seed_of(options["seed"], index)
        alone = engine.generate(PROMPT, images=IMAGES, **{**options, "seed": seed})
        assert parts(alone) == parts(answer)[:1]
    assert len({answer.text for answer in all_of(several)}) > 1
    assert_free(engine)


def test_the_same_seed_gives_the_same_answers_whatever_runs_beside_them(engine: Engine) -> None:
    first = engine.generate("AI: ", n=3, **SAMPLED)
    listed = engine.generate(["Human: 1\nAI: ", "AI: ", "Human: 2\nAI: "], n=3, **SAMPLED)
    assert isinstance(listed, list)
    assert parts(listed[1]) == parts(first)
    assert [len(output.others) for output in listed] == [2, 2, 2]
    unseeded = engine.generate("AI: ", n=3, max_tokens=16, temperature=2.0)
    assert len({tuple(answer.token_ids) for answer in all_of(unseeded)}) == 3


@pytest.mark.parametrize(
    "options", [TOGETHER, {"max_tokens": 24, "frequency_penalty": -1.0}], ids=["together", "repeating"]
)
def test_guessing_changes_no_answer(engine: Engine, options: dict[str, Any]) -> None:
    without, guessing = fresh(engine, speculation=0), fresh(engine, speculation=4)
    plain = without.generate(PROMPT, images=IMAGES, n=3, **options)
    guessed = guessing.generate(PROMPT, images=IMAGES, n=3, **options)
    for ours, other in zip(all_of(guessed), all_of(plain), strict=True):
        assert (ours.text, ours.token_ids, ours.finish_reason) == (
            other.text,
            other.token_ids,
            other.finish_reason,
        )
        assert ours.logprobs == pytest.approx(other.logprobs, abs=SAME_RUN)
    assert guessing._loop.tally.guesses > 0 or options is TOGETHER


def test_greedy_answers_are_all_the_same(engine: Engine) -> None:
    output = engine.generate("AI: ", n=3, max_tokens=6)
    assert parts(output) == parts(output)[:1] * 3


@pytest.mark.parametrize("picture_cache_mb", [256, 0])
def test_prompt_and_picture_are_computed_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, picture_cache_mb: int
) -> None:
    ours = fresh(engine, picture_cache_mb=picture_cache_mb)
    encoded = []
    encode = ours._runner._encode

    def counted(pixels: Tensor, records: bool) -> Tensor:
        encoded.append(pixels)
        return encode(pixels, records)

    monkeypatch.setattr(ours._runner, "_encode", counted)
    output = ours.generate(PROMPT, images=IMAGES, n=5, **SAMPLED)
    assert len(encoded) == 1
    assert output.usage.cached_tokens == 0
    for answer in all_of(output):
        assert answer.usage.prompt_tokens == output.usage.prompt_tokens
        assert answer.usage.image_tokens == ours.config.image_rows
        assert answer.usage.completion_tokens == len(answer.token_ids)
    for answer in output.others:
        assert answer.usage.cached_tokens >= (output.usage.prompt_tokens - 1) // BLOCK_SIZE * BLOCK_SIZE
    assert ours.stats().answered == 5
    assert ours.stats().usage.cached_tokens == sum(answer.usage.cached_tokens for answer in output.others)


def by_answer(events: list[Event], count: int) -> list[list[Event]]:
    return [[event for event in events if event.index == index] for index in range(count)]


def assert_told(events: list[Event], output: Output) -> None:
    """The events tell each answer, and its end last."""
    answers = all_of(output)
    assert {event.index for event in events} == set(range(len(answers)))
    for answer, told in zip(answers, by_answer(events, len(answers)), strict=True):
        assert "".join(event.text for event in told) == answer.text
        assert [token for event in told for token in event.token_ids] == answer.token_ids
        assert [event.logprob for event in told if event.token_ids] == answer.logprobs
        assert [event.finish_reason for event in told] == [None] * (len(told) - 1) + [answer.finish_reason]


@pytest.mark.parametrize("options", [SAMPLED, TOGETHER], ids=["sampled", "together"])
def test_streamed_answers_are_the_same(engine: Engine, options: dict[str, Any]) -> None:
    wanted = engine.generate(PROMPT, images=IMAGES, n=3, **options)
    stream = engine.stream(PROMPT, images=IMAGES, n=3, **options)
    events = [next(stream)]
    with pytest.raises(OwlError, match="still being generated"):
        _ = stream.output
    events += stream
    assert_told(events, stream.output)
    assert parts(stream.output) == parts(wanted)

    async def ask() -> None:
        stream = engine.astream(PROMPT, images=IMAGES, n=3, **options)
        events = [await stream.__anext__()]
        with pytest.raises(OwlError, match="still being generated"):
            _ = stream.output
        events += [event async for event in stream]
        assert_told(events, stream.output)
        assert parts(stream.output) == parts(wanted)

    asyncio.run(ask())
    assert_free(engine)


def test_cancelling_ends_every_answer(engine: Engine) -> None:
    options: dict[str, Any] = {"n": 3, "max_tokens": 200, "ignore_eos": True}
    for after in (0, 1, 3):
        with engine.stream("AI: ", **options) as stream:
            for _ in range(after):
                next(stream)
        assert_free(engine)
        assert [answer.finish_reason for answer in all_of(stream.output)] == ["cancelled"] * 3
    stream = engine.stream("AI: ", **options)
    events = [next(stream)]
    stream.cancel()
    events += stream
    assert_told(events, stream.output)
    assert_free(engine)

    async def ask() -> None:
        async with engine.astream("AI: ", **options) as stream:
            await stream.__anext__()
        assert_free(engine)
        assert [answer.finish_reason for answer in all_of(stream.output)] == ["cancelled"] * 3

    asyncio.run(ask())


def test_an_answer_that_fails_ends_the_others(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    run, steps = engine._runner.run, []

    def ill_last_row(plan: Any) -> Tensor:
        """From the fourth step on."""
        logits = run(plan).clone()
        steps.append(plan)
        if len(steps) > 3:
            logits[-1] = float("nan")
        return logits

    async def ask() -> None:
        stream = engine.astream("AI: ", **options)
        with pytest.raises(OwlError, match="not finite"):
            _ = [event async for event in stream]
        assert [event async for event in stream] == []
        await stream.aclose()
        assert_free(engine)

    options: dict[str, Any] = {"n": 2, "max_tokens": 20, "ignore_eos": True}
    monkeypatch.setattr(engine._runner, "run", ill_last_row)
    with pytest.raises(OwlError, match="not finite"):
        engine.generate("AI: ", **options)
    steps.clear()
    stream = engine.stream("AI: ", **options)
    with pytest.raises(OwlError, match="not finite"):
        list(stream)
    assert list(stream) == []
    stream.close()
    assert_free(engine)
    steps.clear()
    asyncio.run(ask())


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"n": 0}, ParameterError, "n is 0; wanted 1 to 16"),
        ({"n": 17}, ParameterError, "n is 17; wanted 1 to 16"),
        ({"n": 2, "beams": 2}, UnsupportedError, "beams=2 with n=2: beam search is greedy, ends at the end"),
        ({"presence_penalty": 3}, ParameterError, "presence_penalty is 3; wanted -2 to 2; 0 is off"),
        ({"logit_bias": {3: 101}}, ParameterError, "logit_bias of token 3 is 101; wanted -100 to 100"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(
    engine: Engine, options: dict[str, Any], error: type[OwlError], words: str
) -> None:
    with pytest.raises(error, match=re.escape(words)):
        engine.generate("AI: ", **options)


def test_a_bias_of_no_token_of_the_vocabulary_is_refused(engine: Engine) -> None:
    size = engine.config.llama.vocab_size
    words = f"an id of logit_bias is {size}; the vocabulary has 0 to {size - 1}"
    with pytest.raises(ParameterError, match=words):
        engine.stream("AI: ", logit_bias={size: 1.0})
    forced = engine.generate("AI: ", logit_bias={size - 1: 100.0}, max_tokens=2)
    assert forced.token_ids == [size - 1] * 2


def test_beams_take_penalties_and_bias(engine: Engine) -> None:
    plain = engine.generate("AI: ", beams=2, max_tokens=5)
    kept_out = dict.fromkeys(plain.token_ids, -100.0)
    other = engine.generate("AI: ", beams=2, max_tokens=5, logit_bias=kept_out)
    assert not set(other.token_ids) & set(plain.token_ids)


def test_named_ids_end_an_answer_and_are_not_in_its_text(engine: Engine) -> None:
    free = engine.generate(TEXT, max_tokens=12, ignore_eos=True)
    last = free.token_ids[5]
    first = free.token_ids.index(last)
    out = engine.generate(TEXT, max_tokens=12, ignore_eos=True, stop_token_ids=[last])
    assert out.token_ids == free.token_ids[: first + 1]
    assert out.finish_reason == "stop"
    assert out.text == engine.tokenizer.decode(free.token_ids[:first])
    longer = engine.generate(TEXT, max_tokens=12, stop_token_ids=(last,), min_tokens=first + 3)
    assert len(longer.token_ids) >= first + 3
    assert last not in longer.token_ids[: first + 2]
    for wrong in (5, "5", [-1], [True], [1.0]):
        with pytest.raises(ParameterError, match="stop_token_ids"):
            engine.generate(TEXT, stop_token_ids=wrong)
    with pytest.raises(ParameterError, match="the vocabulary has 0 to"):
        engine.generate(TEXT, stop_token_ids=[10**6])
    with pytest.raises(UnsupportedError, match="stop_token_ids"):
        engine.generate(TEXT, stop_token_ids=[3], beams=2)


def test_alternatives_come_with_the_events(engine: Engine) -> None:
    out = engine.generate(TEXT, max_tokens=8, logprobs=3, stop="a")
    events = list(engine.stream(TEXT, max_tokens=8, logprobs=3, stop="a"))
    told = [event for event in events if event.token_ids]
    assert [event.top_logprobs for event in told] == out.top_logprobs
    assert all(event.top_logprobs is None for event in engine.stream(TEXT, max_tokens=8))
