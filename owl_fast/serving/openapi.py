"""The application's OpenAPI document, with the form of every reply."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import models_json_schema

from owl_fast.serving.schema import ChatRequest, CompletionRequest, TokenizeRequest

_REF = "#/components/schemas/{model}"


class _Reply(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorBody(_Reply):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(_Reply):
    error: ErrorBody


class PromptDetails(_Reply):
    cached_tokens: int
    image_tokens: int


class UsageReply(_Reply):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class TimingsReply(_Reply):
    image_ms: float
    prompt_ms: float
    prompt_n: int
    predicted_ms: float
    predicted_n: int
    predicted_per_second: float
    cached_n: int


class TokenLogprob(_Reply):
    token: str
    logprob: float
    bytes: list[int]


class ChosenLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(_Reply):
    content: list[ChosenLogprob]
    refusal: None


class CompletionLogprobs(_Reply):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class AnswerMessage(_Reply):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(_Reply):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class CompletionChoice(_Reply):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatReply(_Reply):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageReply
    timings: TimingsReply


class CompletionReply(_Reply):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: UsageReply
    timings: TimingsReply


class Tokens(_Reply):
    count: int
    max_model_len: int
    tokens: list[int]


class Model(_Reply):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    parent: str | None
    max_model_len: int


class Models(_Reply):
    object: Literal["list"]
    data: list[Model]


class Status(_Reply):
    status: str


_MODELS = (
    *(ChatRequest, CompletionRequest, TokenizeRequest),
    *(ChatReply, CompletionReply, Tokens, Model, Models, Status, Error),
)


def of(request: type[BaseModel] | None, reply: type[BaseModel]) -> dict[str, Any]:
    """How a route describes itself. Its body is read by json_input, which FastAPI does not know."""
    content: dict[str, Any] = {"application/json": {"schema": _ref(reply)}}
    refusals = [503]
    if request is not None:
        refusals += [400, 404, 413, 415, 429, 500]
        if request is not TokenizeRequest:
            event = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
            content["text/event-stream"] = {"schema": event}
    responses: dict[int | str, Any] = {200: {"description": "the answer", "content": content}}
    for status in (*refusals, 401):
        error = {"application/json": {"schema": _ref(Error)}}
        responses[status] = {"description": "why there is none", "content": error}
    described: dict[str, Any] = {"responses": responses, "response_model": None}
    if request is not None:
        body = {"required": True, "content": {"application/json": {"schema": _ref(request)}}}
        described["openapi_extra"] = {"requestBody": body}
    return described


def of_model() -> dict[str, Any]:
    """How the route of one model describes itself."""
    described = of(None, Model)
    described["responses"][404] = described["responses"][503]
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    return described | {"openapi_extra": {"parameters": [name]}}


def document(app: FastAPI) -> dict[str, Any]:
    described = get_openapi(title=app.title, version=app.version, routes=app.routes)
    modes = [(model, "validation") for model in _MODELS]
    _, definitions = models_json_schema(modes, ref_template=_REF)  # type: ignore[arg-type]
    described["components"] = {"schemas": definitions["$defs"]}
    return described


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REF.format(model=model.__name__)}
