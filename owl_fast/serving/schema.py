"""What clients send, and what of it generation gets: OpenAI's fields, and the extras under vLLM's names.

Strict: no number for a text, no text for a number, a bound on everything. What is not known is ignored, and
its names are told to the caller, who logs them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from owl_fast.engine.inputs import PromptItem
from owl_fast.engine.sampling import MAX_BIAS, MAX_PENALTY, SamplingParams
from owl_fast.serving.errors import ApiError
from owl_fast.serving.limits import Limits

# A schema is one for all servers, so these bounds are those of the defaults.
LIMITS = Limits()
_COUNT = (1 << 31) - 1
_INT64 = 1 << 63

Text = Annotated[str, Field(max_length=LIMITS.text)]
Stop = Annotated[str, Field(min_length=1, max_length=LIMITS.stop_characters)]
TokenId = Annotated[int, Field(ge=0, le=_COUNT)]
Count = Annotated[int, Field(ge=0, le=_COUNT)]
Penalty = Annotated[float, Field(ge=-MAX_PENALTY, le=MAX_PENALTY)]
Bias = Annotated[float, Field(ge=-MAX_BIAS, le=MAX_BIAS)]
BiasedId = Annotated[str, Field(pattern="^[0-9]{1,9}$")]
Logprobs = Annotated[int, Field(ge=0, le=LIMITS.logprobs)]
Url = Annotated[str, Field(min_length=1, max_length=LIMITS.body)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")


class StreamOptions(_Strict):
    include_usage: bool | None = None


class Sampling(_Strict):
    """What both doors share. None is as good as nothing."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model: Annotated[str, Field(max_length=256)]
    max_tokens: Annotated[int, Field(ge=1, le=_COUNT)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=LIMITS.answers)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=LIMITS.stops)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    seed: Annotated[int, Field(ge=-_INT64, lt=_INT64)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[BiasedId, Bias], Field(max_length=LIMITS.biases)] | None = None
    user: Annotated[str, Field(max_length=1024)] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=64)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=_COUNT)] | None = None
    min_p: Annotated[float, Field(ge=0, lt=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    no_repeat_ngram_size: Count | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=LIMITS.stop_ids)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Count | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def check(self) -> None:
        """ApiError for what fits field by field but not together."""
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options needs stream: true", param="stream_options")
        most = self.longest
        if self.min_tokens and most is not None and self.min_tokens > most:
            raise ApiError(400, "min_tokens is more than max_tokens", param="min_tokens")
        biased = [int(token) for token in self.logit_bias or {}]
        if len(set(biased)) < len(biased):
            raise ApiError(400, "logit_bias names a token twice", param="logit_bias")

    def check_ids(self, vocabulary: int) -> None:
        """ApiError for an id of no token. vocabulary: so many there are."""
        named = {"logit_bias": map(int, self.logit_bias or ()), "stop_token_ids": self.stop_token_ids or ()}
        for name, ids in named.items():
            if any(token >= vocabulary for token in ids):
                raise ApiError(400, f"{name}: ids of tokens go from 0 to {vocabulary - 1}", param=name)

    @property
    def longest(self) -> int | None:
        """Tokens of an answer at most; None: what the context leaves."""
        return self.max_tokens

    def _params(self, logprobs: int) -> SamplingParams:
        given = {
            "top_p": self.top_p,
            "min_p": self.min_p,
            "n": self.n,
            "stop": tuple(self.stop) if isinstance(self.stop, list) else self.stop,
            "seed": self.seed,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "logit_bias": {int(token): bias for token, bias in (self.logit_bias or {}).items()},
            "repetition_penalty": self.repetition_penalty,
            "no_repeat_ngram": self.no_repeat_ngram_size,
            "stop_token_ids": tuple(self.stop_token_ids or ()),
            "ignore_eos": self.ignore_eos,
            "min_tokens": self.min_tokens,
        }
        return SamplingParams(
            max_tokens=self.longest,
            temperature=1.0 if self.temperature is None else self.temperature,  # OpenAI's default
            top_k=max(self.top_k or 0, 0),  # -1, too, keeps all
            logprobs=logprobs,
            **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
        )


class TextPart(_Strict):
    type: Literal["text"]
    text: Text


class ImageUrl(_Strict):
    url: Url
    detail: Literal["auto", "low", "high"] | None = None  # every picture is seen at one size


class ImagePart(_Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[Part], Field(min_length=1, max_length=1024, fail_fast=True)]

    @property
    def parts(self) -> list[TextPart | ImagePart]:
        if isinstance(self.content, str):
            return [TextPart(type="text", text=self.content)]
        return self.content


# An error for each of thousands of parts would take the event loop's time.
Messages = Annotated[list[Message], Field(min_length=1, max_length=LIMITS.messages, fail_fast=True)]


class ResponseFormat(_Strict):
    type: Annotated[str, Field(max_length=64)]


class ChatRequest(Sampling):
    source: ClassVar = "messages"

    messages: Messages
    max_completion_tokens: Annotated[int, Field(ge=1, le=_COUNT)] | None = None
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Any], Field(max_length=128)] | None = None
    tool_choice: Any = None
    functions: Annotated[list[Any], Field(max_length=128)] | None = None
    function_call: Any = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None

    @property
    def longest(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    def check(self) -> None:
        super().check()
        if self.tools or self.functions:
            raise _unsupported("tools" if self.tools else "functions")
        for name in ("tool_choice", "function_call"):
            if getattr(self, name) not in (None, "none", "auto"):
                raise _unsupported(name)
        if self.response_format is not None and self.response_format.type != "text":
            raise _unsupported("response_format", "; only text is written")
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
        self._check_end()
        check_sizes(self.messages)

    @property
    def answers(self) -> int:
        return self.n or 1

    @property
    def begun(self) -> bool:
        """Whether the last message is an answer, which is then gone on with."""
        return self.messages[-1].role == "assistant"

    def _check_end(self) -> None:
        if self.continue_final_message and not self.begun:
            raise ApiError(
                400,
                "continue_final_message: the last message is not the assistant's",
                param="continue_final_message",
            )
        if self.add_generation_prompt and self.begun:
            raise ApiError(
                400,
                "add_generation_prompt: the last message is the assistant's, and is gone on with",
                param="add_generation_prompt",
            )

    @property
    def params(self) -> SamplingParams:
        return self._params((self.top_logprobs or 0) if self.logprobs else 0)

    @property
    def urls(self) -> list[str]:
        """Of the pictures, in order."""
        return [
            part.image_url.url
            for message in self.messages
            for part in message.parts
            if isinstance(part, ImagePart)
        ]

    def prompts(self, pictures: Sequence[object]) -> list[PromptItem]:
        """As the engine takes them. pictures: what the URLs name."""
        return [{"messages": engine_messages(self.messages, pictures)}]


class CompletionRequest(Sampling):
    """prompt: written out, "<image>" where a picture stands; images: those pictures, an extra field."""

    source: ClassVar = "prompt"

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=LIMITS.answers)]
    images: list[Url] | None = None
    logprobs: Logprobs | None = None
    echo: bool | None = None
    suffix: Text | None = None
    best_of: Annotated[int, Field(ge=1, le=LIMITS.answers)] | None = None

    @property
    def longest(self) -> int | None:
        return 16 if self.max_tokens is None else self.max_tokens  # OpenAI's default

    @property
    def answers(self) -> int:
        return len(self.texts) * (self.n or 1)

    @property
    def texts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    def check(self) -> None:
        super().check()
        if self.echo:
            raise _unsupported("echo")
        if self.suffix:
            raise _unsupported("suffix")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise _unsupported("best_of", "; ask for n answers")
        if self.answers > LIMITS.answers:
            raise ApiError(400, f"prompts times n: at most {LIMITS.answers} answers", param="n")
        if self.images and len(self.texts) > 1:
            raise ApiError(400, "images go with one prompt", param="images")
        check_pictures(len(self.images or ()), "images")
        _check_text(self.texts, "prompt")

    @property
    def params(self) -> SamplingParams:
        return self._params(self.logprobs or 0)

    @property
    def urls(self) -> list[str]:
        return self.images or []

    def prompts(self, pictures: Sequence[object]) -> list[PromptItem]:
        return [{"prompt": text, "images": pictures} for text in self.texts]


class TokenizeRequest(_Strict):
    model_config = ConfigDict(protected_namespaces=())

    model: Annotated[str, Field(max_length=256)] | None = None
    prompt: Text | None = None
    messages: Messages | None = None

    def check(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise ApiError(400, "wanted prompt or messages, one of them", param="prompt")
        if self.messages is not None:
            check_sizes(self.messages)


def engine_messages(messages: Iterable[Message], pictures: Sequence[object]) -> list[dict[str, Any]]:
    """Messages with their pictures, in the engine's words."""
    left = iter(pictures)
    return [
        {
            "role": message.role,
            "content": [
                {"type": "text", "text": part.text}
                if isinstance(part, TextPart)
                else {"type": "image", "image": next(left)}
                for part in message.parts
            ],
        }
        for message in messages
    ]


def check_sizes(messages: Iterable[Message]) -> None:
    """ApiError for more text or pictures than a request may have."""
    parts = [part for message in messages for part in message.parts]
    check_pictures(sum(isinstance(part, ImagePart) for part in parts), "messages")
    _check_text([part.text for part in parts if isinstance(part, TextPart)], "messages")


def check_pictures(count: int, param: str) -> None:
    if count > LIMITS.images:
        raise ApiError(
            400, f"{count} pictures came; at most {LIMITS.images}", code="too_many_images", param=param
        )


def _check_text(texts: Iterable[str], param: str) -> None:
    if sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) > LIMITS.text:
        raise ApiError(400, f"more than {LIMITS.text >> 10} KiB of text", param=param)


def _unsupported(name: str, rest: str = "") -> ApiError:
    return ApiError(400, f"{name} is not supported{rest}", code="unsupported_parameter", param=name)


Asked = TypeVar("Asked", ChatRequest, CompletionRequest, TokenizeRequest)


def read(kind: type[Asked], body: object) -> Asked:
    """What came, checked; ApiError names the field and what it wants, and repeats nothing."""
    if not isinstance(body, dict):
        raise ApiError(400, "the body is not a JSON object")
    try:
        request = kind.model_validate(body)
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False, include_input=False)) from None
    request.check()
    return request


_NAME = re.compile(r"[a-z_]+")


def _refusal(found: list[ErrorDetails]) -> ApiError:
    """Of alternatives each says what is wrong with it: meant is the one that got furthest."""
    places = [".".join(_known(error["loc"])) for error in found]
    where = max(places, key=lambda place: place.count("."))
    there = [error for error, place in zip(found, places, strict=True) if place == where]
    meant = [error for error in there if not error["type"].endswith("_type")] or there
    message = f"{where}: {', or '.join(dict.fromkeys(map(_said, meant)))}"
    return ApiError(400, message[: LIMITS.error // 2], param=where or None)


def _known(loc: Iterable[str | int]) -> Iterable[str]:
    """The parts of a place that the client, too, would name; not what the schema calls its alternatives."""
    before: str | int = ""
    for part in loc:
        if isinstance(part, int) or (part in _FIELDS and not (isinstance(before, int) and part in _PARTS)):
            yield str(part)
        before = part


def _said(error: ErrorDetails) -> str:
    context = {name: _plain(value) for name, value in error.get("ctx", {}).items()}
    words = _WORDS.get(error["type"])
    return words.format_map(context) if words else error["msg"]


def _plain(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


_PARTS = ("text", "image_url")
_WORDS = {
    "missing": "is missing",
    "string_type": "wanted a text",
    "int_type": "wanted a whole number",
    "float_type": "wanted a number",
    "bool_type": "wanted true or false",
    "list_type": "wanted a list",
    "dict_type": "wanted an object",
    "model_type": "wanted an object",
    "model_attributes_type": "wanted an object",
    "literal_error": "wanted {expected}",
    "union_tag_invalid": f"type: wanted {' or '.join(_PARTS)}",
    "union_tag_not_found": f"type: wanted {' or '.join(_PARTS)}",
    "string_pattern_mismatch": "wanted ids of tokens, as texts",
    "string_too_short": "wanted at least {min_length} character(s)",
    "string_too_long": "wanted at most {max_length} characters",
    "too_short": "wanted at least {min_length} of them",
    "too_long": "wanted at most {max_length} of them",
    "greater_than": "wanted more than {gt}",
    "greater_than_equal": "wanted at least {ge}",
    "less_than": "wanted less than {lt}",
    "less_than_equal": "wanted at most {le}",
    "finite_number": "wanted a finite number",
}


_FIELDS = frozenset(
    name
    for model in (
        *(ChatRequest, CompletionRequest, TokenizeRequest, Message, TextPart, ImagePart, ImageUrl),
        *(StreamOptions, ResponseFormat),
    )
    for name in model.model_fields
)
