"""What clients are sent: OpenAI's objects, whole and in chunks."""

from __future__ import annotations

import itertools
import json
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from owl_fast.engine.outputs import Event, FinishReason, Output, Usage
from owl_fast.tokenizer import Tokenizer

DONE = b"data: [DONE]\n\n"
COMMENT = b": still here\n\n"
LEAST_LOGPROB = -9999.0  # JSON has no infinity
# An answer that is cut off because its time is over is one that got too long.
_REASONS: dict[FinishReason, str] = {"stop": "stop", "length": "length", "cancelled": "length"}

Json = dict[str, Any]

# Names of replies: which process, which of its replies. Asking the system for chance each time would be slow.
_RUN, _NUMBERS = secrets.token_hex(8), itertools.count()


def sse(data: Json) -> bytes:
    """An event of a stream."""
    return b"data: " + dump(data) + b"\n\n"


def dump(data: Json) -> bytes:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()


class _Tokens:
    """The tokens of one answer, as they come, for logprobs."""

    def __init__(self, tokenizer: Tokenizer, begun: bool) -> None:
        """begun: the answer goes on with a text, and the space in front of its first word is part of it."""
        self._tokenizer = tokenizer
        self._begun = begun
        self.length = 0  # characters so far

    def named(self, token_id: int) -> tuple[str, bytes]:
        text = self._tokenizer.token_bytes(token_id)
        if not self._begun:
            text = text.removeprefix(b" ")
        return text.decode("utf-8", "replace"), text

    def take(self, text: str) -> None:
        self._begun = True
        self.length += len(text)


class Shape(ABC):
    """Of the replies to one request. kind: of the objects; id: of this one."""

    kind = whole_kind = prefix = ""

    def __init__(self, model: str, tokenizer: Tokenizer, logprobs: bool, begun: bool = False) -> None:
        self.head: Json = {
            "id": f"{self.prefix}-{_RUN}{next(_NUMBERS):08x}",
            "object": self.kind,
            "created": int(time.time()),
            "model": model,
        }
        self._tokenizer, self._logprobs, self._begun = tokenizer, logprobs, begun
        self._tokens: dict[int, _Tokens] = {}

    def opening(self, index: int) -> Json | None:
        """The first choice of an answer, before anything is said."""
        return None

    def piece(self, event: Event) -> Json | None:
        """The choice that an event makes; None if nothing can be shown."""
        logprobs = self._of_event(event)
        if not event.text and logprobs is None:
            return None
        return self._choice(event.index, event.text, logprobs, None)

    def end(self, event: Event) -> Json:
        return self._choice(event.index, None, None, _REASONS[event.finish_reason or "stop"])

    def chunk(self, choices: Sequence[Json], **more: Any) -> bytes:
        return sse({**self.head, "choices": choices, **more})

    def whole(self, outputs: Sequence[Output]) -> bytes:
        """The reply to one who waits for all of it. outputs: for each prompt the first of its answers."""
        answers = [answer for first in outputs for answer in (first, *first.others)]
        choices = [self._whole_choice(index, answer) for index, answer in enumerate(answers)]
        head = {**self.head, "object": self.whole_kind}
        return dump({**head, "choices": choices, "usage": usage(outputs), "timings": timings(outputs)})

    def _whole_choice(self, index: int, answer: Output) -> Json:
        nothing: list[dict[int, float] | None] = [None] * len(answer.token_ids)
        tops = answer.top_logprobs or nothing
        entries = [
            entry
            for token, logprob, top in zip(answer.token_ids, answer.logprobs, tops, strict=True)
            if (entry := self._of_event(Event("", [token], logprob, None, index, top))) is not None
        ]
        return self._written(index, answer.text, _merged(entries), _REASONS[answer.finish_reason])

    def _of_event(self, event: Event) -> Json | None:
        """The logprobs of its token, if they are wanted."""
        if not self._logprobs or len(event.token_ids) != 1 or event.logprob is None:
            return None
        if event.token_ids[0] in self._tokenizer.special_ids:
            return None
        tokens = self._tokens.setdefault(event.index, _Tokens(self._tokenizer, self._begun))
        top = sorted((event.top_logprobs or {}).items(), key=lambda entry: -entry[1])
        return self._entry(tokens, event.token_ids[0], event.logprob, top)

    @abstractmethod
    def _entry(self, tokens: _Tokens, token: int, logprob: float, top: list[tuple[int, float]]) -> Json:
        """The logprobs of one token. top: the likeliest instead of it, best first."""

    @abstractmethod
    def _choice(self, index: int, text: str | None, logprobs: Json | None, reason: str | None) -> Json:
        """Of a chunk; text None: of the last one."""

    @abstractmethod
    def _written(self, index: int, text: str, logprobs: Json | None, reason: str) -> Json:
        """Of a whole reply."""


class ChatShape(Shape):
    kind, whole_kind, prefix = "chat.completion.chunk", "chat.completion", "chatcmpl"

    def opening(self, index: int) -> Json | None:
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _entry(self, tokens: _Tokens, token: int, logprob: float, top: list[tuple[int, float]]) -> Json:
        def named(token: int, logprob: float) -> Json:
            text, data = tokens.named(token)
            return {"token": text, "logprob": max(logprob, LEAST_LOGPROB), "bytes": list(data)}

        entry = {**named(token, logprob), "top_logprobs": [named(*other) for other in top]}
        tokens.take(entry["token"])
        return {"content": [entry], "refusal": None}

    def _choice(self, index: int, text: str | None, logprobs: Json | None, reason: str | None) -> Json:
        delta = {} if text is None else {"content": text}
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _written(self, index: int, text: str, logprobs: Json | None, reason: str) -> Json:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}


class CompletionShape(Shape):
    kind, whole_kind, prefix = "text_completion", "text_completion", "cmpl"

    def _entry(self, tokens: _Tokens, token: int, logprob: float, top: list[tuple[int, float]]) -> Json:
        others = {tokens.named(other)[0]: max(value, LEAST_LOGPROB) for other, value in top}
        text, offset = tokens.named(token)[0], tokens.length
        tokens.take(text)
        return {
            "tokens": [text],
            "token_logprobs": [max(logprob, LEAST_LOGPROB)],
            "top_logprobs": [others],
            "text_offset": [offset],
        }

    def _choice(self, index: int, text: str | None, logprobs: Json | None, reason: str | None) -> Json:
        return {"index": index, "text": text or "", "logprobs": logprobs, "finish_reason": reason}

    _written = _choice


def usage(outputs: Sequence[Output]) -> Json:
    """outputs: for each prompt the first of its answers. A prompt counts once, however many it has."""
    said = Usage(0, 0)
    for first in outputs:
        said += first.usage
        for other in first.others:
            said += Usage(0, other.usage.completion_tokens)
    return {
        "prompt_tokens": said.prompt_tokens,
        "completion_tokens": said.completion_tokens,
        "total_tokens": said.total_tokens,
        "prompt_tokens_details": {"cached_tokens": said.cached_tokens, "image_tokens": said.image_tokens},
    }


def timings(outputs: Sequence[Output]) -> Json:
    """Of several answers: the prompts one after the other, the answers side by side."""
    answers = [answer.timings for first in outputs for answer in (first, *first.others)]
    firsts = [first.timings for first in outputs]
    return {
        "image_ms": round(sum(times.image_ms for times in firsts), 3),
        "prompt_ms": round(sum(times.prompt_ms for times in firsts), 3),
        "prompt_n": sum(times.prompt_n for times in firsts),
        "predicted_ms": round(max(times.predicted_ms for times in answers), 3),
        "predicted_n": sum(times.predicted_n for times in answers),
        "predicted_per_second": round(sum(times.predicted_per_second for times in answers), 3),
        "cached_n": sum(first.usage.cached_tokens for first in outputs),
    }


def _merged(entries: Sequence[Json]) -> Json | None:
    """The logprobs of several tokens as one object."""
    if not entries:
        return None
    return {
        name: None if value is None else [item for entry in entries for item in entry[name]]
        for name, value in entries[0].items()
    }
