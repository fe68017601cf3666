"""A request and the sequences it runs as: the state the scheduler moves and the loop fills."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from torch import Tensor

from owl_fast.engine.beam import BeamSearch
from owl_fast.engine.outputs import Event, FinishReason, Output, TextStream, Timings, Usage
from owl_fast.engine.sampling import SamplingParams
from owl_fast.lora import Adapter
from owl_fast.prompts import IMAGE_ID


@dataclass(eq=False)
class Sequence:
    """A row of token ids and the part of it whose keys and values are in the cache.

    token_ids   prompt, then generated ids; IMAGE_ID where a picture's row stands
    computed    positions 0..computed-1 are in the cache, in the blocks of `table`
    logits_from first position whose logits are wanted (the last one while generating)
    """

    token_ids: list[int]
    logits_from: int
    computed: int = 0
    table: list[int] = field(default_factory=list)

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
    encoded: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0

    def token(self) -> None:
        self.last_token = time.perf_counter()
        self.first_token = self.first_token or self.last_token


@dataclass(eq=False)
class Request:
    """One prompt on its way through the engine.

    pixels, (3, S, S) of each picture and (T, 3, S, S) of each video, become visual (rows, hidden) when the
    request starts. score_from is set for a request that only wants the log-probs of its ids from that
    position on. `cancelled` may be set at any time, from anywhere; the scheduler acts on it at its next step.
    """

    prompt_ids: list[int]
    params: SamplingParams
    max_tokens: int
    seed: int
    bos_id: int
    text: TextStream
    pixels: Seq[Tensor] = ()
    score_from: int | None = None
    beams: BeamSearch | None = None
    adapter: Adapter | None = None

    visual: Tensor | None = None
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
        return Usage(len(self.prompt_ids), len(self.generated), image_tokens=self.image_tokens)

    @property
    def timings(self) -> Timings:
        clock = self.clock
        started, encoded = clock.started or clock.submitted, clock.encoded or clock.submitted
        first = clock.first_token or encoded
        return Timings(
            queued_ms=1e3 * (started - clock.submitted),
            image_ms=1e3 * (encoded - started),
            prompt_ms=1e3 * (first - encoded),
            predicted_ms=1e3 * (clock.last_token - first) if clock.last_token else 0.0,
            prompt_n=len(self.prompt_ids),
            predicted_n=len(self.generated),
        )

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
