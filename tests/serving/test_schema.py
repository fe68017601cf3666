"""What is taken and what is refused, without a server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from owl_fast.engine.sampling import SamplingParams
from owl_fast.serving import schema
from owl_fast.serving.errors import ApiError
from owl_fast.serving.schema import LIMITS, ChatRequest, CompletionRequest, TokenizeRequest

MESSAGES = [{"role": "user", "content": "hello"}]
CHAT = {"model": "m", "messages": MESSAGES}
COMPLETION = {"model": "m", "prompt": "hello"}
BIG = 10**12


def chat(**fields: Any) -> ChatRequest:
    return schema.read(ChatRequest, {**CHAT, **fields})


def refused(kind: Any, body: object) -> ApiError:
    with pytest.raises(ApiError) as caught:
        schema.read(kind, body)
    assert caught.value.status == 400
    assert len(caught.value.content) <= LIMITS.error
    return caught.value


def test_defaults_are_those_of_the_api() -> None:
    assert chat().params == SamplingParams(temperature=1.0)
    assert schema.read(CompletionRequest, COMPLETION).params == SamplingParams(temperature=1.0, max_tokens=16)


def test_null_is_as_good_as_nothing() -> None:
    names = set(ChatRequest.model_fields) - {"model", "messages"}
    assert chat(**dict.fromkeys(names)).params == chat().params
    names = set(CompletionRequest.model_fields) - {"model", "prompt"}
    empty = schema.read(CompletionRequest, {**COMPLETION, **dict.fromkeys(names)})
    assert empty.params == SamplingParams(temperature=1.0, max_tokens=16)


def test_every_field_reaches_the_engine() -> None:
    asked = chat(
        max_completion_tokens=7,
        max_tokens=9,
        temperature=0,
        top_p=0.5,
        n=2,
        stop=["a", "b"],
        seed=-3,
        presence_penalty=1,
        frequency_penalty=-2,
        logit_bias={"5": -100, "3": 1.5},
        top_k=4,
        min_p=0.25,
        repetition_penalty=1.5,
        no_repeat_ngram_size=3,
        stop_token_ids=[9],
        ignore_eos=True,
        min_tokens=2,
        logprobs=True,
        top_logprobs=5,
    )
    assert asked.params == SamplingParams(
        max_tokens=7,
        temperature=0.0,
        top_k=4,
        top_p=0.5,
        min_p=0.25,
        repetition_penalty=1.5,
        presence_penalty=1.0,
        frequency_penalty=-2.0,
        logit_bias={3: 1.5, 5: -100.0},
        no_repeat_ngram=3,
        seed=-3,
        n=2,
        stop=("a", "b"),
        stop_token_ids=(9,),
        ignore_eos=True,
        min_tokens=2,
        logprobs=5,
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": []},
        {"tool_choice": "none"},
        {"tool_choice": "auto"},
        {"response_format": {"type": "text"}},
        {"top_k": -1},
        {"user": "u", "metadata": {"a": "b"}},
        {"stop": "x" * 256},
        {"stop": []},
        {"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}},
        {"logit_bias": {str(token): 1 for token in range(300)}},
        {"n": 4, "temperature": 2, "top_logprobs": 20, "logprobs": True},
        {"seed": -(2**63)},
        {"messages": MESSAGES * 128},
        {"messages": [{"role": "user", "content": "x" * (256 << 10)}]},
        {"parallel_tool_calls": True, "service_tier": "auto"},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_is_taken(fields: dict[str, Any]) -> None:
    chat(**fields).params  # noqa: B018


# Each value is one step over its bound, or of another type.
BOUNDS: dict[str, list[Any]] = {
    "model": [None, 5, "x" * 257],
    "temperature": [-0.001, 2.001, "1", True, float("nan"), float("inf")],
    "top_p": [0, -1, 1.001, "0.5"],
    "n": [0, 5, -1, BIG, 1.5, True, "2"],
    "stop": ["", ["a"] * 5, ["x" * 257], [""], [5], 5, {"a": 1}],
    "stream": [1, "true", []],
    "stream_options": [True, [], {"include_usage": 1}],
    "seed": [2**63, -(2**63) - 1, 1.0, "1", True],
    "presence_penalty": [-2.001, 2.001, "0"],
    "frequency_penalty": [-2.001, 2.001, [0]],
    "logit_bias": [
        *([], {"a": 1}, {"-1": 1}, {"1": 101}, {"1": -101}, {"1": "1"}, {"1": None}),
        *({str(token): 1 for token in range(301)}, {"01": 1, "1": 1}),
    ],
    "max_tokens": [0, -1, 2**31, 1.5, "5"],
    "user": [5, "x" * 1025],
    "metadata": ["x", {"a": 5}],
    "top_k": [-2, 1.5, 2**31],
    "min_p": [-0.1, 1, 1.1],
    "repetition_penalty": [0, -1, 0.009, 1e-300, 10.1],
    "no_repeat_ngram_size": [-1, 2**31, 0.5],
    "stop_token_ids": [[-1], ["a"], 5, [1] * 65],
    "ignore_eos": [1, "no"],
    "min_tokens": [-1, 2**31],
}
CHAT_BOUNDS: dict[str, list[Any]] = {
    "messages": [[], MESSAGES * 129, "hello", [5], [{}], [{"role": "user"}], [{"content": "x"}]]
    + [[{"role": role, "content": "x"}] for role in ("tool", "function", "User", "", None, 5)]
    + [[{"role": "user", "content": content}] for content in (None, 5, [], ["x"], [{}], {"type": "text"})]
    + [
        [{"role": "user", "content": [part]}]
        for part in (
            {"type": "text"},
            {"type": "text", "text": 5},
            {"type": "image", "image": "/etc/passwd"},
            {"type": "video", "video": "x"},
            {"type": "image_url"},
            {"type": "image_url", "image_url": "data:"},
            {"type": "image_url", "image_url": {"url": ""}},
            {"type": "image_url", "image_url": {"url": "data:", "detail": "best"}},
            {"type": "input_audio", "input_audio": {}},
        )
    ]
    + [[{"role": "user", "content": "x" * ((256 << 10) + 1)}]]
    + [[{"role": "user", "content": "é" * (128 << 10)}, *MESSAGES]],
    "max_completion_tokens": [0, 2**31, "5"],
    "logprobs": [1, "yes"],
    "top_logprobs": [-1, 21, True],
    "response_format": [{"type": "json_object"}, {"type": "json_schema", "json_schema": {}}, "text", {}],
    "tools": [[{}], "x"],
    "functions": [[{}]],
    "tool_choice": ["required", {"type": "function"}],
    "function_call": ["x", {"name": "x"}],
}
COMPLETION_BOUNDS: dict[str, list[Any]] = {
    "prompt": [None, 5, [], [5], [[5, 6]], ["x"] * 5, "x" * ((256 << 10) + 1)],
    "logprobs": [True, 21, -1],
    "echo": [True, 1],
    "suffix": ["x", 5],
    "best_of": [2, 0, 5],
    "images": [["data:"] * 5, "data:", [5], [""]],
}


@pytest.mark.parametrize(
    ("kind", "body", "name", "value"),
    [
        (kind, body, name, value)
        for kind, body, bounds in (
            (ChatRequest, CHAT, BOUNDS | CHAT_BOUNDS),
            (CompletionRequest, COMPLETION, BOUNDS | COMPLETION_BOUNDS),
        )
        for name, values in bounds.items()
        for value in values
    ],
    ids=lambda value: (
        getattr(value, "__name__", None) or (value if isinstance(value, str) and len(value) < 30 else "")
    ),
)
def test_what_is_refused(kind: Any, body: dict[str, Any], name: str, value: Any) -> None:
    error = refused(kind, {**body, name: value})
    assert (error.param or "").split(".")[0] == name


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 2, "logprobs": False}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"min_tokens": 5, "max_tokens": 9, "max_completion_tokens": 4}, "min_tokens"),
        ({"continue_final_message": True}, "continue_final_message"),
        (
            {"add_generation_prompt": True, "messages": [*MESSAGES, {"role": "assistant", "content": "I"}]},
            "add_generation_prompt",
        ),
    ],
)
def test_what_does_not_go_together(fields: dict[str, Any], param: str) -> None:
    assert refused(ChatRequest, {**CHAT, **fields}).param == param


@pytest.mark.parametrize("body", [None, [], "x", 5, True])
def test_bodies_that_are_no_objects(body: object) -> None:
    assert "JSON object" in refused(ChatRequest, body).message


def test_messages_that_help() -> None:
    error = refused(ChatRequest, {**CHAT, "messages": [{"role": "user", "content": 5}]})
    assert error.message == "messages.0.content: wanted a text, or wanted a list"
    error = refused(ChatRequest, {**CHAT, "messages": [{"role": "bot", "content": "x"}]})
    assert error.message == "messages.0.role: wanted 'system', 'developer', 'user' or 'assistant'"
    error = refused(ChatRequest, {**CHAT, "messages": [{"role": "user", "content": [{"type": "x"}]}]})
    assert error.message == "messages.0.content.0: type: wanted text or image_url"
    assert refused(ChatRequest, {**CHAT, "temperature": 3}).message == "temperature: wanted at most 2"
    assert refused(ChatRequest, {**CHAT, "stop": ["a"] * 5}).message == "stop: wanted at most 4 of them"
    assert refused(ChatRequest, {"messages": CHAT["messages"]}).message == "model: is missing"
    url = [{"type": "image_url", "image_url": {"url": ""}}]
    error = refused(ChatRequest, {**CHAT, "messages": [{"role": "user", "content": url}]})
    assert error.param == "messages.0.content.0.image_url.url"


def test_tokenize_wants_one_of_two() -> None:
    for body in ({}, {"prompt": "x", "messages": MESSAGES}):
        refused(TokenizeRequest, body)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)
FIELDS = sorted(set(ChatRequest.model_fields) | set(CompletionRequest.model_fields))


def never_breaks(kind: Any, body: dict[str, Any], fields: dict[str, Any]) -> None:
    """Whatever stands in the fields, it is params or a short refusal that repeats none of it."""
    marked = json.loads(json.dumps({**body, **fields}).replace("hello", "CANARY"))
    error = None
    try:
        schema.read(kind, marked).params  # noqa: B018
    except ApiError as refusal:
        error = refusal
    assert error is None or error.status == 400
    assert error is None or len(error.content) <= LIMITS.error
    assert error is None or b"CANARY" not in error.content


@settings(derandomize=True, max_examples=500, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=6))
def test_never_breaks(fields: dict[str, Any]) -> None:
    never_breaks(ChatRequest, CHAT, fields)
    never_breaks(CompletionRequest, COMPLETION, fields)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=8))
def test_never_breaks_for_long(fields: dict[str, Any]) -> None:
    never_breaks(ChatRequest, CHAT, fields)
    never_breaks(CompletionRequest, COMPLETION, fields)
