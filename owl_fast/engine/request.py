"""A request and the sequences it runs as: the state the scheduler moves and the loop fills."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from owl_fast.engine.beam import BeamSearch
from owl_fast.engine.outputs import Event, FinishReason, Output, TextStream, Timings, Usage
from owl_fast.engine.pictures import Picture, units_of
from owl_fast.engine.sampling import SamplingParams
from owl_fast.engine.speculation import Guesser
from owl_fast.lora import Adapter
from owl_fast.prompts import IMAGE_ID


@dataclass(eq=False)
class Sequence:
    """A row of token ids and the part of it whose keys and values are in the cache.

    token_ids   prompt, then generated ids; IMAGE_ID where a picture's row stands
    logits_from first position whose logits are wanted (the last one while generating)
    computed    positions 0..computed-1 are in the cache, in the blocks of `table`
    prefixes    digests of what stands before its first blocks, as far as anybody asked (blocks.py)
    """

    token_ids: list[int]
    logits_from: int
    computed: int = 0
    table: list[int] = field(default_factory=list)
    prefixes: list[bytes] = field(default_factory=list)

    @property
    def pending(self) -> int:
        """Positions still to be computed before the next token can be chosen."""
        return len(self.token_ids) - self.computed

    def append(self, token: int) -> None:
        self.logits_from = len(self.token_ids)
        self.token_ids.append(token)


@dataclass
class Clock:
    """Moments of a request's life, in seconds of time.perf_counter()."""

    submitted: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    encoding: float = 0.0  # seconds in all
    first_token: float = 0.0
    last_token: float = 0.0

    def token(self) -> None:
        self.last_token = time.perf_counter()
        self.first_token = self.first_token or self.last_token


@dataclass(eq=False)
class Request:
    """One prompt on its way through the engine.

    score_from is set for a request that only wants the log-probs of its ids from that position on. client:
    whom it is for; the clients share the engine evenly. root: on what, besides the ids and the pictures, its
    keys and values depend. index: which of several answers to its prompt it gives. `cancelled` may be set at
    any time, from anywhere; the scheduler acts on it at its next step.
    """

    prompt_ids: list[int]
    params: SamplingParams
    max_tokens: int
    seed: int
    bos_id: int
    text: TextStream
    pictures: Seq[Picture] = ()
    score_from: int | None = None
    beams: BeamSearch | None = None
    adapter: Adapter | None = None
    client: str = ""
    root: bytes = b""
    index: int = 0
    guesser: Guesser | None = None

    cached: int = 0  # positions of the prompt that were in the cache when it first started
    sequences: list[Sequence] = field(default_factory=list)
    generated: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[dict[int, float]] = field(default_factory=list)
    events: deque[Event] = field(default_factory=deque)
    clock: Clock = field(default_factory=Clock)
    cancelled: bool = False
    finish_reason: FinishReason | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        first = len(self.prompt_ids) if self.score_from is None else self.score_from
        self.sequences = [Sequence(list(self.prompt_ids), logits_from=first - 1)]
        self._units = units_of(self.prompt_ids, self.pictures)

    def units(self, sequence: Sequence, start: int, end: int) -> list[int]:
        """What its positions start..end-1 hold (blocks.py)."""
        length = len(self._units)
        return self._units[start:end] + sequence.token_ids[max(start, length) : max(end, length)]

    def pictures_in(self, start: int, end: int) -> tuple[Seq[Picture], int, int]:
        """Those with rows at positions start..end-1, how many rows of the first come before, and how many
        there are inside."""
        inside = self.prompt_ids[start:end].count(IMAGE_ID)
        if not inside:
            return (), 0, 0
        each = self.image_tokens // len(self.pictures)
        first, skipped = divmod(self.prompt_ids[:start].count(IMAGE_ID), each)
        return self.pictures[first : first + -(-(skipped + inside) // each)], skipped, inside

    @property
    def pending(self) -> int:
        """Positions still to be computed before it can go on."""
        return sum(sequence.pending for sequence in self.sequences)

    def goes_with(self, other: Request) -> bool:
        """Whether both may be in one batch."""
        adapters = (self.adapter, other.adapter)
        return self.adapter is other.adapter or not any(a is not None and a.runs_alone for a in adapters)

    @property
    def width(self) -> int:
        """Sequences it may run at once."""
        return self.params.beams if self.beams is not None else 1

    @property
    def longest(self) -> int:
        """Positions one of its sequences may come to hold in the cache; the last token is never computed."""
        return len(self.prompt_ids) + (self.max_tokens - 1 if self.score_from is None else 0)

    @property
    def image_tokens(self) -> int:
        return self.prompt_ids.count(IMAGE_ID)

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def usage(self) -> Usage:
        return Usage(len(self.prompt_ids), len(self.generated), self.image_tokens, self.cached)

    @property
    def timings(self) -> Timings:
        clock = self.clock
        started = clock.started or clock.submitted
        first = clock.first_token or started + clock.encoding
        return Timings(
            queued_ms=1e3 * (started - clock.submitted),
            image_ms=1e3 * clock.encoding,
            prompt_ms=1e3 * (first - started - clock.encoding),
            predicted_ms=1e3 * (clock.last_token - first) if clock.last_token else 0.0,
            prompt_n=len(self.prompt_ids),
            predicted_n=len(self.generated),
        )

    @property
    def last_top_logprobs(self) -> dict[int, float] | None:
        """Of the token that came last, if they were asked for."""
        return self.top_logprobs[-1] if self.top_logprobs else None

    @property
    def output(self) -> Output:
        """The finished request as the caller sees it."""
        assert self.finish_reason is not None
        return Output(
            text=self.text.shown,
            token_ids=list(self.generated),
            logprobs=list(self.logprobs),
            finish_reason=self.finish_reason,
            usage=self.usage,
            timings=self.timings,
            top_logprobs=list(self.top_logprobs) if self.params.logprobs else None,
            score=self.beams.best.score if self.beams is not None else None,
            error=self.error,
        )
