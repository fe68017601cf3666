"""Which sequences run in the next step, and how many of their positions.

A step is one packed batch: first one row for every answer being generated, then as much of the prompts as
the token budget allows. A request starts when its rows and the blocks it may ever need are free, in order of
arrival, so a running request never waits for memory. Requests of different adapters never run together.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from owl_fast.engine.kv_cache import BlockAllocator, blocks_for
from owl_fast.engine.request import Request, Sequence


@dataclass(frozen=True)
class Span:
    """Positions start..end-1 of a sequence; logits are wanted from position logits_from on (end: none)."""

    request: Request
    sequence: Sequence
    start: int
    end: int

    @property
    def logits_from(self) -> int:
        return min(max(self.sequence.logits_from, self.start), self.end)

    @property
    def complete(self) -> bool:
        """True when the sequence has nothing left to compute after this span."""
        return self.end == len(self.sequence.token_ids)


@dataclass(frozen=True)
class StepPlan:
    """One step: the spans in packed order and the block copies to carry out first."""

    spans: list[Span] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)


class Scheduler:
    """Owns the waiting and running requests and the blocks they hold."""

    def __init__(self, allocator: BlockAllocator, max_batch: int, step_tokens: int) -> None:
        assert step_tokens >= max_batch, "every running answer needs a row in each step"
        self.allocator = allocator
        self.max_batch = max_batch
        self.step_tokens = step_tokens
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    def add(self, request: Request) -> None:
        assert request.width <= self.max_batch, "the facade refuses what can never run"
        assert self._blocks(request) <= self.allocator.num_blocks, "the facade refuses what can never fit"
        self.waiting.append(request)

    def take_cancelled(self) -> list[Request]:
        """Remove the requests whose `cancelled` is set, with their blocks, and return them."""
        gone = [request for request in (*self.running, *self.waiting) if request.cancelled]
        for request in gone:
            self.remove(request)
        return gone

    def admit(self) -> list[Request]:
        """Start waiting requests in order of arrival while they fit; returns those that start."""
        started = []
        while self.waiting and self._fits(self.waiting[0]):
            started.append(self.waiting.popleft())
            self.running.append(started[-1])
        return started

    def plan(self) -> StepPlan:
        """The next step over the running requests. Planning changes no sequence but its block table."""
        plan = StepPlan()
        budget = self.step_tokens
        rows = [(request, sequence) for request in self.running for sequence in request.sequences]
        rows.sort(key=lambda row: row[1].pending > 1)  # stable: answers first, then prompts, each in order
        for request, sequence in rows:
            count = min(sequence.pending, budget)
            if count == 0:
                continue
            span = Span(request, sequence, sequence.computed, sequence.computed + count)
            plan.copies.extend(self.allocator.make_writable(sequence.table, span.start, span.end))
            plan.spans.append(span)
            budget -= count
        return plan

    def fork(self, request: Request, parents: list[int], tokens: list[int]) -> None:
        """Replace the sequences by children: child i continues sequence parents[i] with tokens[i]."""
        before = request.sequences
        request.sequences = []
        for parent, token in zip(parents, tokens, strict=True):
            sequence = before[parent]
            child = Sequence(list(sequence.token_ids), sequence.logits_from, sequence.computed)
            child.table = self.allocator.fork(sequence.table)
            child.append(token)
            request.sequences.append(child)
        for sequence in before:
            self.allocator.release(sequence.table)

    def remove(self, request: Request) -> None:
        """Take a request out, wherever it is, and free its blocks."""
        for sequence in request.sequences:
            self.allocator.release(sequence.table)
        request.sequences = []
        if request in self.running:
            self.running.remove(request)
        elif request in self.waiting:
            self.waiting.remove(request)

    def _blocks(self, request: Request) -> int:
        return request.width * blocks_for(request.longest, self.allocator.block_size)

    def _fits(self, request: Request) -> bool:
        if any(other.adapter is not request.adapter for other in self.running):
            return False
        rows = sum(other.width for other in self.running) + request.width
        blocks = sum(self._blocks(other) for other in self.running) + self._blocks(request)
        return rows <= self.max_batch and blocks <= self.allocator.num_blocks
