"""What generation hands back, and the text that may already be shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, replace
from operator import add
from typing import Literal, Protocol

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class Usage:
    """Counts of positions: image_tokens are part of prompt_tokens, cached_tokens were not computed anew."""

    prompt_tokens: int
    completion_tokens: int
    image_tokens: int = 0
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(*map(add, astuple(self), astuple(other)))


@dataclass(frozen=True)
class Timings:
    """Milliseconds of waiting, pictures, prompt (to the first token) and the other tokens, and the counts."""

    queued_ms: float = 0.0
    image_ms: float = 0.0
    prompt_ms: float = 0.0
    predicted_ms: float = 0.0
    prompt_n: int = 0
    predicted_n: int = 0

    @property
    def first_token_ms(self) -> float:
        return self.queued_ms + self.image_ms + self.prompt_ms

    @property
    def predicted_per_second(self) -> float:
        """Tokens after the first per second of decoding; for a lone token, counting its prompt."""
        if self.predicted_n > 1 and self.predicted_ms > 0:
            return 1e3 * (self.predicted_n - 1) / self.predicted_ms
        return 1e3 * self.predicted_n / self.first_token_ms if self.first_token_ms > 0 else 0.0

    def __add__(self, other: Timings) -> Timings:
        return Timings(*map(add, astuple(self), astuple(other)))


@dataclass(frozen=True)
class Output:
    """A finished answer.

    token_ids     every generated id, the end token included
    logprobs      of the model's own distribution, one per id; top_logprobs: those of the likeliest ids
    score         of the beam, normalised by length
    error         why the request ended with finish_reason "error"
    others        the other answers when several were asked for (n), each with a usage and timings of its own:
                  all of them count the prompt, and cached_tokens tells what of it was not computed again
    """

    text: str
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    top_logprobs: list[dict[int, float]] | None = None
    score: float | None = None
    error: str | None = None
    others: list[Output] = field(default_factory=list)


def joined(answers: Sequence[Output]) -> Output:
    """Several answers to one prompt as they are handed back."""
    return replace(answers[0], others=list(answers[1:]))


@dataclass(frozen=True)
class Event:
    """A piece of a streamed answer: the texts of all events of an answer joined are Output.text.

    The last one of an answer, and only it, has a finish_reason. logprob belongs to the one id of token_ids;
    it is None when there is none or several, and so are top_logprobs, those of the likeliest ids if they were
    asked for. index: of the answer, where several were asked for.
    """

    text: str
    token_ids: list[int] = field(default_factory=list)
    logprob: float | None = None
    finish_reason: FinishReason | None = None
    index: int = 0
    top_logprobs: dict[int, float] | None = None


class Decoder(Protocol):
    """Ids to text piece by piece, never splitting a UTF-8 character."""

    def push(self, token_id: int, /) -> str: ...

    def flush(self) -> str: ...


class TextStream:
    """Turns ids into text that may be shown: holds back what may become a stop string, ends at the first."""

    def __init__(self, decoder: Decoder, stops: tuple[str, ...] = ()) -> None:
        self._decoder, self._stops = decoder, stops
        self._decoded = ""
        self.shown = ""
        self.stopped = False

    def push(self, token_id: int) -> str:
        """Text that became certain with this id; sets `stopped` when a stop string is complete."""
        return self._advance(self._decoder.push(token_id), last=False)

    def close(self) -> str:
        """What was still held back at the end of the answer."""
        if self.stopped:
            return ""
        return self._advance(self._decoder.flush(), last=True)

    def _advance(self, piece: str, *, last: bool) -> str:
        self._decoded += piece
        start = len(self.shown)
        found = [self._decoded.find(stop, start) for stop in self._stops]
        hits = [position for position in found if position >= 0]
        if hits:
            self.stopped = True
            end = min(hits)
        else:
            end = len(self._decoded) - (0 if last else self._held_back(self._decoded[start:]))
        self.shown = self._decoded[:end]
        return self._decoded[start:end]

    def _held_back(self, pending: str) -> int:
        """Length of the longest end of the pending text that begins a stop string."""
        for length in range(min(len(pending), max(map(len, self._stops), default=1) - 1), 0, -1):
            if any(stop.startswith(pending[-length:]) for stop in self._stops):
                return length
        return 0
