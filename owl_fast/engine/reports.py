"""What an engine says of itself: the memory it takes and the work it has done."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from owl_fast.engine.outputs import FinishReason, Timings, Usage


@dataclass(frozen=True)
class Memory:
    """Bytes on the model's device. pictures: of the rows kept of them, when that cache is full. activations:
    an estimate of what the largest step takes for a while."""

    weights: int
    adapters: int
    cache: int
    pictures: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.adapters + self.cache + self.pictures + self.activations


@dataclass(frozen=True)
class Stats:
    """Work since the engine was made.

    requests    taken in; each is waiting, running, or has been answered, cancelled or failed
    usage       sums over the ended requests
    timings     the same; in Timings.predicted_per_second a row counts for itself, not for its batch
    steps       batches computed, and the seconds spent in them, out of `seconds` in all
    failed_steps    those that raised, and took the answers they were about with them
    silent_seconds  since the work that is there was last seen to go on; 0 when there is none
    blocks      of the cache, and those of them that no request holds
    preemptions how often a running request had to wait again, for memory or for another client's turn
    guesses     positions that were computed on a guess, and those of them that came true
    pictures    rows of so many were asked for, and so many of them were found in the picture cache
    """

    requests: int
    waiting: int
    running: int
    answered: int
    cancelled: int
    failed: int
    usage: Usage
    timings: Timings
    steps: int
    preemptions: int
    guesses: int
    guesses_right: int
    pictures: int
    pictures_cached: int
    busy_seconds: float
    seconds: float
    failed_steps: int
    silent_seconds: float
    blocks: int
    blocks_free: int


@dataclass
class Tally:
    """The counts behind Stats, as the loop keeps them."""

    requests: int = 0
    steps: int = 0
    preemptions: int = 0
    guesses: int = 0
    guesses_right: int = 0
    pictures: int = 0
    pictures_cached: int = 0
    failed_steps: int = 0
    busy_seconds: float = 0.0
    ended: dict[FinishReason, int] = field(
        default_factory=lambda: {"stop": 0, "length": 0, "cancelled": 0, "error": 0}
    )
    usage: Usage = field(default_factory=lambda: Usage(0, 0))
    timings: Timings = field(default_factory=Timings)
    since: float = field(default_factory=time.perf_counter)

    def end(self, reason: FinishReason, usage: Usage, timings: Timings) -> None:
        self.ended[reason] += 1
        self.usage += usage
        self.timings += timings

    def stats(
        self,
        *,
        arrived: int,
        waiting: int,
        running: int,
        blocks: int,
        blocks_free: int,
        silent_seconds: float,
    ) -> Stats:
        """arrived: of those that wait, the ones not taken in yet."""
        return Stats(
            requests=arrived + self.requests,
            waiting=waiting,
            running=running,
            answered=self.ended["stop"] + self.ended["length"],
            cancelled=self.ended["cancelled"],
            failed=self.ended["error"],
            usage=self.usage,
            timings=self.timings,
            steps=self.steps,
            preemptions=self.preemptions,
            guesses=self.guesses,
            guesses_right=self.guesses_right,
            pictures=self.pictures,
            pictures_cached=self.pictures_cached,
            busy_seconds=self.busy_seconds,
            seconds=time.perf_counter() - self.since,
            failed_steps=self.failed_steps,
            silent_seconds=silent_seconds,
            blocks=blocks,
            blocks_free=blocks_free,
        )
