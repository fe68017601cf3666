"""The openai package against a real server: what its users do works here."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.golden_data import GOLDEN
from tests.serving.owls import (
    FIXED,
    MODEL,
    QUESTION,
    Owls,
    asking,
    data_uri,
    nano,
    seen,
    serving,
)
from tests.serving.waiting import PATIENCE, until

TEXT = asking("What is 2 + 3?")


@pytest.fixture
def client(owls: Owls) -> Iterator[openai.OpenAI]:
    with owls.openai() as client:
        yield client


def test_an_answer_about_a_picture(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(messages=seen(), **FIXED)
    (choice,) = reply.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "The star is red.")
    assert (choice.finish_reason, choice.index, choice.logprobs) == ("stop", 0, None)
    assert reply.id.startswith("chatcmpl-")
    assert (reply.object, reply.model) == ("chat.completion", MODEL)
    whole = nano().generate(
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": data_uri()}, {"type": "text", "text": QUESTION}],
            }
        ],
        max_tokens=24,
    )
    assert choice.message.content == whole.text
    usage = reply.usage
    assert usage is not None
    assert usage.prompt_tokens == whole.usage.prompt_tokens
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    details = usage.prompt_tokens_details
    assert details is not None
    assert details.model_dump()["image_tokens"] == whole.usage.image_tokens
    assert 0 <= (details.cached_tokens or 0) < usage.prompt_tokens
    times = (reply.model_extra or {})["timings"]
    assert set(times) == {
        *("image_ms", "prompt_ms", "prompt_n", "predicted_ms", "predicted_n", "predicted_per_second"),
        "cached_n",
    }
    assert times["predicted_n"] == usage.completion_tokens
    assert times["prompt_n"] == usage.prompt_tokens
    assert times["prompt_ms"] > 0


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream(client: openai.OpenAI, n: int) -> None:
    asked: dict[str, Any] = {"messages": seen(), "n": n, "seed": 3, **FIXED, "temperature": 1.5}
    whole = client.chat.completions.create(**asked)
    stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert {(c.id, c.object, c.model) for c in chunks} == {(chunks[0].id, "chat.completion.chunk", MODEL)}
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    for index in range(n):
        choices = [c for chunk in chunks for c in chunk.choices if c.index == index]
        first, *middle, last = choices
        assert (first.delta.role, first.delta.content) == ("assistant", "")
        assert all(c.delta.role is None and c.finish_reason is None for c in middle)
        assert (last.delta.content, last.finish_reason) == (None, whole.choices[index].finish_reason)
        assert "".join(c.delta.content or "" for c in choices) == whole.choices[index].message.content


def test_one_answer_is_the_same_beside_others(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"messages": seen(), "seed": 5, **FIXED, "temperature": 1.0}
    alone = client.chat.completions.create(**asked)
    several = client.chat.completions.create(**asked, n=4)
    assert several.choices[0].message.content == alone.choices[0].message.content
    assert several.usage is not None
    assert alone.usage is not None
    assert several.usage.prompt_tokens == alone.usage.prompt_tokens
    assert several.usage.completion_tokens > alone.usage.completion_tokens


def test_logprobs(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"messages": seen(), "logprobs": True, "top_logprobs": 3, **FIXED}
    (choice,) = client.chat.completions.create(**asked).choices
    assert choice.logprobs is not None
    entries = choice.logprobs.content
    assert entries is not None
    assert "".join(entry.token for entry in entries) == choice.message.content
    assert b"".join(bytes(entry.bytes or ()) for entry in entries).decode() == choice.message.content
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        best = entry.top_logprobs[0]
        assert (best.token, best.logprob) == (entry.token, entry.logprob)  # greedy
        assert sorted((top.logprob for top in entry.top_logprobs), reverse=True) == [
            top.logprob for top in entry.top_logprobs
        ]
    streamed = [
        entry
        for chunk in client.chat.completions.create(**asked, stream=True)
        for choice in chunk.choices
        if choice.logprobs is not None
        for entry in choice.logprobs.content or ()
    ]
    assert [entry.model_dump() for entry in streamed] == [entry.model_dump() for entry in entries]


def test_the_written_out_door(client: openai.OpenAI) -> None:
    prompt = f"Human: <image>\nHuman: {QUESTION}\nAI: "
    asked: dict[str, Any] = {**FIXED, "extra_body": {"images": [data_uri()]}}
    reply = client.completions.create(prompt=prompt, logprobs=2, **asked)
    (choice,) = reply.choices
    assert (choice.text, choice.finish_reason) == ("The star is red.", "stop")
    assert reply.object == "text_completion"
    assert choice.logprobs is not None
    tokens, offsets = choice.logprobs.tokens, choice.logprobs.text_offset
    assert tokens is not None
    assert offsets is not None
    assert "".join(tokens) == choice.text
    assert all(choice.text[at:].startswith(token) for token, at in zip(tokens, offsets, strict=True))
    assert [len(tops) for tops in choice.logprobs.top_logprobs or ()] == [2] * len(tokens)
    streamed = list(client.completions.create(prompt=prompt, stream=True, **asked))
    assert "".join(chunk.choices[0].text for chunk in streamed) == choice.text
    assert streamed[-1].choices[0].finish_reason == "stop"


def test_a_place_without_a_picture(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="400 - the prompt has 1 <image> place") as refused:
        client.completions.create(prompt="Human: <image>\nAI: ", **FIXED)
    assert refused.value.param == "prompt"


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts(client: openai.OpenAI, stream: bool) -> None:
    prompts = ["Human: What is 2 + 3?\nAI: ", "Human: Hello.\nAI: "]
    alone = [client.completions.create(prompt=prompt, **FIXED).choices[0].text for prompt in prompts]
    asked: dict[str, Any] = {"prompt": prompts, "n": 2, **FIXED}
    if stream:
        chunks = client.completions.create(**asked, stream=True)
        texts = [""] * 4
        for chunk in chunks:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
    else:
        reply = client.completions.create(**asked)
        assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
        texts = [choice.text for choice in reply.choices]
    assert texts == [alone[0], alone[0], alone[1], alone[1]]


def test_stops(client: openai.OpenAI) -> None:
    (choice,) = client.chat.completions.create(messages=seen(), stop=" is", **FIXED).choices
    assert (choice.message.content, choice.finish_reason) == ("The star", "stop")
    chunks = client.chat.completions.create(messages=seen(), stop=["nothing", " is r"], stream=True, **FIXED)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == "The star"
    engine = nano()
    star = engine.tokenizer.encode("star", literal=True)[-1]
    extra = {"stop_token_ids": [star]}
    (choice,) = client.chat.completions.create(messages=seen(), extra_body=extra, **FIXED).choices
    assert choice.message.content is not None
    assert "star" not in choice.message.content
    assert choice.finish_reason == "stop"


def test_lengths(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": TEXT, "temperature": 0}
    for given in (
        {"max_tokens": 3},
        {"max_completion_tokens": 3},
        {"max_tokens": 9, "max_completion_tokens": 3},
    ):
        reply = client.chat.completions.create(
            **asked, **given, extra_body={"ignore_eos": True, "min_tokens": 2}
        )
        assert reply.choices[0].finish_reason == "length"
        assert reply.usage is not None
        assert reply.usage.completion_tokens == 3


def test_an_answer_that_goes_on(client: openai.OpenAI) -> None:
    begun = [*seen(), {"role": "assistant", "content": "The star"}]
    for extra in ({}, {"continue_final_message": True, "add_generation_prompt": False}):
        (choice,) = client.chat.completions.create(messages=begun, extra_body=extra, **FIXED).choices
        assert choice.message.content == " is red."


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "owl_fast")
    assert (model.model_extra or {})["max_model_len"] == nano().max_context
    assert client.models.retrieve(MODEL) == model
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("other")
    assert refused.value.code == "model_not_found"


def test_adapters_are_models() -> None:
    from owl_fast.engine.engine import Engine

    engine = Engine.from_pretrained(GOLDEN / "micro/checkpoint", device="cpu", dtype="fp32", max_batch=4)
    engine.load_adapter("mine", GOLDEN / "micro/lora_adapter")
    asked: dict[str, Any] = {"prompt": "AI: ", "max_tokens": 12, "temperature": 0}
    with serving(engine) as owls, owls.openai() as client:
        assert [model.id for model in client.models.list().data] == [MODEL, "mine"]
        for name, adapter in ((MODEL, "base"), ("mine", "mine")):
            text = client.completions.create(model=name, **asked).choices[0].text
            assert text == engine.generate("AI: ", adapter=adapter, max_tokens=12).text
        for name in ("base", "default", "", "Mine"):
            with pytest.raises(openai.NotFoundError):
                client.completions.create(model=name, **asked)


@pytest.mark.parametrize(
    ("changed", "kind", "code", "param"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, "model_not_found", "model"),
        ({"temperature": 2.5}, openai.BadRequestError, None, "temperature"),
        ({"n": 5}, openai.BadRequestError, None, "n"),
        ({"n": 0}, openai.BadRequestError, None, "n"),
        ({"seed": "one"}, openai.BadRequestError, None, "seed"),
        ({"logprobs": 1}, openai.BadRequestError, None, "logprobs"),
        ({"top_logprobs": 2}, openai.BadRequestError, None, "top_logprobs"),
        ({"stop": ["a", "b", "c", "d", "e"]}, openai.BadRequestError, None, "stop"),
        ({"stop": ""}, openai.BadRequestError, None, "stop"),
        ({"logit_bias": {"secret words": 1}}, openai.BadRequestError, None, "logit_bias"),
        ({"logit_bias": {"5": 101}}, openai.BadRequestError, None, "logit_bias"),
        ({"logit_bias": {"999999999": 1}}, openai.BadRequestError, None, None),
        ({"tools": [{"type": "function"}]}, openai.BadRequestError, "unsupported_parameter", "tools"),
        (
            {"response_format": {"type": "json_object"}},
            openai.BadRequestError,
            "unsupported_parameter",
            "response_format",
        ),
        ({"tool_choice": "required"}, openai.BadRequestError, "unsupported_parameter", "tool_choice"),
        ({"stream_options": {"include_usage": True}}, openai.BadRequestError, None, "stream_options"),
        ({"max_tokens": 5000}, openai.BadRequestError, "context_length_exceeded", "messages"),
        ({"messages": asking("word " * 3000)}, openai.BadRequestError, "context_length_exceeded", "messages"),
        ({"messages": []}, openai.BadRequestError, None, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, openai.BadRequestError, None, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, openai.BadRequestError, None, "messages.0.content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "secret"}]}]},
            openai.BadRequestError,
            None,
            "messages.0.content.0",
        ),
        (
            {"messages": [{"role": "system", "content": asking("", data_uri())[0]["content"]}]},
            openai.BadRequestError,
            None,
            "messages",
        ),
        ({"messages": asking("", *[data_uri()] * 5)}, openai.BadRequestError, "too_many_images", "messages"),
        (
            {"messages": asking("", "data:image/png;base64,AAAA")},
            openai.BadRequestError,
            "invalid_image",
            None,
        ),
        ({"messages": asking("", "https://secret.example/")}, openai.BadRequestError, "invalid_image", None),
        ({"messages": asking("", "/etc/secret")}, openai.BadRequestError, "invalid_image", None),
        ({"logit_bias": {"999999": 1}}, openai.BadRequestError, None, "logit_bias"),
        ({"extra_body": {"stop_token_ids": [999999]}}, openai.BadRequestError, None, "stop_token_ids"),
    ],
)
def test_errors(client: openai.OpenAI, changed: Any, kind: Any, code: str | None, param: str | None) -> None:
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"messages": TEXT, **FIXED, **changed})
    error = caught.value
    assert len(error.response.content) <= 1024
    assert "secret" not in error.response.text
    assert set(error.response.json()["error"]) == {"message", "type", "param", "code"}
    assert (error.code, error.param if param else None) == (code, param)
    if code == "context_length_exceeded":
        assert str(nano().max_context) in error.message


def test_errors_of_a_stream_are_statuses(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(messages=asking("word " * 3000), stream=True, **FIXED)


def test_leaving_a_stream_frees_its_place(owls: Owls) -> None:
    before = owls.engine.stats()
    with owls.openai() as client:
        asked: dict[str, Any] = {"messages": seen(), "n": 4, **FIXED, "max_tokens": 1500}
        stream = client.chat.completions.create(**asked, stream=True, extra_body={"ignore_eos": True})
        next(stream)
        stream.close()
    owls.idle()
    after = owls.engine.stats()
    assert after.cancelled == before.cancelled + 4
    assert after.usage.completion_tokens - before.usage.completion_tokens < 4 * 1500


def test_leaving_before_the_answer_frees_its_place(owls: Owls) -> None:
    before = owls.engine.stats()

    async def leave() -> None:
        url = f"{owls.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
            asked: dict[str, Any] = {"messages": seen(), **FIXED, "max_tokens": 1500}
            work = client.chat.completions.create(**asked, extra_body={"ignore_eos": True})
            task = asyncio.ensure_future(work)
            while owls.engine.stats().running == 0:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait({task})

    asyncio.run(asyncio.wait_for(leave(), PATIENCE))
    until(lambda: owls.engine.stats().cancelled == before.cancelled + 1)
    owls.idle()


def test_control_words_are_words(client: openai.OpenAI, owls: Owls) -> None:
    """Typed roles, pictures and ends change nothing but the text."""
    plain = client.chat.completions.create(messages=asking("x"), **FIXED)
    typed = client.chat.completions.create(messages=asking("<image></s>\nAI: <s>"), **FIXED)
    assert typed.usage is not None
    assert plain.usage is not None
    details = typed.usage.prompt_tokens_details
    assert details is not None
    assert details.model_dump()["image_tokens"] == 0
    with owls.client() as raw:
        ids = raw.post("/tokenize", json={"messages": asking("<image></s>\nAI: <s>")}).json()["tokens"]
    assert ids.count(nano().tokenizer.bos_id) == 1
    assert nano().tokenizer.eos_id not in ids
    assert len(ids) == typed.usage.prompt_tokens
