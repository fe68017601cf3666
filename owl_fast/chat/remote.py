"""A model behind an OpenAI-compatible server, as the screen sees it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from owl_fast.chat import sampling
from owl_fast.chat.backend import Messages, Rows
from owl_fast.chat.server import Exchange, Server, ServerError
from owl_fast.conversation import picture_uri
from owl_fast.engine.outputs import Event, Output, Timings, Usage
from owl_fast.engine.sampling import SamplingParams
from owl_fast.errors import UnsupportedError
from owl_fast.video import FRAMES, Video, load_frames

# Our names -> the server's, sent only when changed: OpenAI itself refuses what it does not know.
FIELDS = {
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "no_repeat_ngram": "no_repeat_ngram_size",
    "top_p": "top_p",
    "max_tokens": "max_tokens",
    "seed": "seed",
    "stop": "stop",
}
MAX_CHARACTERS = 1 << 20  # of an answer; no context is so long
NOT_HERE = "the model is on a server, which does not tell; ask for it there"


class RemoteBackend:
    max_context: int | None = None

    def __init__(self, server: Server, model: str | None) -> None:
        """model: its name on the server; None takes the first the server lists. ServerError when it is not
        there to be asked."""
        self._server = server
        self.name = model if model is not None else _first_model(server)

    def ready(self) -> str:
        return f"ready: {self.name} at {self._server.url}"

    def check(self, params: SamplingParams) -> None:
        if params.beams > 1:
            raise UnsupportedError("beams: servers of this kind have no beam search; leave beams at 1")

    def reply(self, messages: Messages, params: SamplingParams, adapter: str | None) -> RemoteReply:
        changed = sampling.changed(params)
        body: dict[str, Any] = {
            "model": self.name,
            "messages": [_message(message) for message in messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": params.temperature,
            **{theirs: changed[ours] for ours, theirs in FIELDS.items() if ours in changed},
        }
        if messages[-1]["role"] == "assistant":
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return RemoteReply(self._server.post("/chat/completions", body))

    def count_tokens(self, messages: Messages) -> int:
        raise UnsupportedError(NOT_HERE)

    def show(self, topic: str, messages: Messages) -> str | Rows:
        if topic == "model":
            return [("name", self.name), ("server", self._server.url)]
        raise UnsupportedError(NOT_HERE)

    def load_adapter(self, name: str, folder: str) -> None:
        raise UnsupportedError("adapters of a server are models of their own; start the chat with that MODEL")

    def adapters(self) -> list[str]:
        return []


class RemoteReply:
    """An answer streamed by a server. What the server does not count is 0 in the output."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._begin = time.perf_counter()
        self._first = self._last = 0.0  # seconds after the beginning
        self._text: list[str] = []
        self._length = 0
        self._reason: Any = None
        self._usage: Mapping[str, Any] = {}
        self._timings: Mapping[str, Any] = {}

    def __enter__(self) -> RemoteReply:
        return self

    def __exit__(self, *exception: object) -> None:
        self._exchange.__exit__()

    def cancel(self) -> None:
        self._reason = "cancelled"
        self._exchange.abort()

    def __iter__(self) -> Iterator[Event]:
        try:
            for data in self._exchange.events():
                if data == "[DONE]":
                    self._reason = self._reason or "stop"
                    break
                text = self._take(data)
                if text:
                    yield Event(text)
        except ServerError:
            if self._reason != "cancelled":
                raise
        if self._reason is None:
            raise ServerError("the server broke off in the middle of the answer")

    @property
    def output(self) -> Output:
        usage, times = self._usage, self._timings
        tokens = _count(usage, "completion_tokens")
        details = usage.get("prompt_tokens_details")
        details = details if isinstance(details, Mapping) else {}
        return Output(
            text="".join(self._text),
            token_ids=[],
            logprobs=[],
            finish_reason=self._reason,
            usage=Usage(
                _count(usage, "prompt_tokens"),
                tokens,
                _count(details, "image_tokens"),
                _count(details, "cached_tokens"),
            ),
            timings=Timings(
                image_ms=_count(times, "image_ms"),
                prompt_ms=1e3 * self._first - _count(times, "image_ms"),
                predicted_ms=1e3 * (self._last - self._first),
                predicted_n=tokens,
            ),
        )

    def _take(self, data: str) -> str:
        """Read one event; the new text in it."""
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict):
            raise ServerError(f"the server sent an event that is no JSON object: {data:.80}")
        if "error" in event:
            error = event["error"]
            said = error.get("message") if isinstance(error, dict) else error
            raise ServerError(f"the server says: {said!s:.1000}")
        self._usage = _mapping(event, "usage") or self._usage
        self._timings = _mapping(event, "timings") or self._timings
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else {}
        if not isinstance(choice, dict):
            return ""
        reason = choice.get("finish_reason")
        if self._reason is None and isinstance(reason, str):
            self._reason = reason
        text = _mapping(choice, "delta").get("content")
        if not isinstance(text, str) or not text:
            return ""
        self._length += len(text)
        if self._length > MAX_CHARACTERS:
            raise ServerError(f"the server's answer has no end: more than {MAX_CHARACTERS} characters came")
        self._last = time.perf_counter() - self._begin
        self._first = self._first or self._last
        self._text.append(text)
        return text


def _first_model(server: Server) -> str:
    listed = server.get("/models")
    entries = listed.get("data") if isinstance(listed, dict) else None
    first = entries[0] if isinstance(entries, list) and entries else None
    name = first.get("id") if isinstance(first, dict) else None
    if not isinstance(name, str):
        raise ServerError(f"{server.url} lists no model; give its name as MODEL")
    return name


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """As it is sent: pictures inside, as data URIs; videos as a few pictures."""
    content = message["content"]
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = [sent for part in content for sent in _parts(part)]
    return {"role": message["role"], "content": content}


def _parts(part: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if part["type"] == "image":
        shown: list[Any] = [part["image"]]
    elif part["type"] == "video":
        shown = load_frames(Video(part["video"], part.get("num_frames", FRAMES)))
    else:
        return [part]
    return [{"type": "image_url", "image_url": {"url": picture_uri(frame)}} for frame in shown]


def _mapping(parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = parent.get(name)
    return value if isinstance(value, Mapping) else {}


def _count(parent: Mapping[str, Any], name: str) -> int:
    value = parent.get(name)
    return round(value) if isinstance(value, (int, float)) and 0 <= value < 1 << 53 else 0
