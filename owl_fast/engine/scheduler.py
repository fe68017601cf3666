"""Which sequences run in the next step, and how many of their positions.

A step is one packed batch: first one row for every answer being generated, then as much of the prompts as the
token budget allows. A request starts when its rows and the blocks of what it holds so far are free; what the
cache holds of its beginning is not computed again. Answers take blocks as they grow. When none is left, the
request that started last gives way: it waits again and is computed anew, its answer so far as if it were
prompt. Requests for different adapters run together, unless one of these replaces what all rows share.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Literal

from owl_fast.engine.blocks import BlockAllocator, blocks_for, prefix_digest
from owl_fast.engine.request import Request, Sequence
from owl_fast.engine.waiting import WaitingRequests


@dataclass(frozen=True)
class Span:
    """Positions start..end-1 of a sequence; logits are wanted from position logits_from on (end: none).

    guesses: ids that may follow those the sequence has; the last positions are theirs.
    """

    request: Request
    sequence: Sequence
    start: int
    end: int
    guesses: tuple[int, ...] = ()

    @property
    def token_ids(self) -> list[int]:
        return [*self.sequence.token_ids[self.start : self.end], *self.guesses]

    @property
    def logits_from(self) -> int:
        return min(max(self.sequence.logits_from, self.start), self.end)

    @property
    def complete(self) -> bool:
        """True when the sequence has nothing left to compute after this span."""
        return self.end == len(self.sequence.token_ids) + len(self.guesses)


@dataclass(frozen=True)
class StepPlan:
    """One step: the spans in packed order, the block copies to carry out first, and who gave way for it."""

    spans: list[Span] = field(default_factory=list)
    copies: list[tuple[int, int]] = field(default_factory=list)
    preempted: list[Request] = field(default_factory=list)


class Scheduler:
    """Owns the waiting and running requests and the blocks they hold."""

    def __init__(
        self, allocator: BlockAllocator, max_batch: int, step_tokens: int, guessed_rows: int = 0
    ) -> None:
        """guessed_rows: steps with fewer rows are filled up to these with guesses (speculation.py)."""
        assert step_tokens >= max_batch, "every running answer needs a row in each step"
        self.allocator = allocator
        self.max_batch = max_batch
        self.step_tokens = step_tokens
        self.guessed_rows = min(guessed_rows, step_tokens)
        self.waiting = WaitingRequests()
        self.running: list[Request] = []  # in the order they started
        self._copies: list[tuple[int, int]] = []
        self._preempted: list[Request] = []

    def shorten_steps(self, step_tokens: int) -> None:
        """To so many rows, if they have more and all running answers still get theirs."""
        self.step_tokens = max(min(self.step_tokens, step_tokens), self.max_batch)
        self.guessed_rows = min(self.guessed_rows, self.step_tokens)

    def add(self, request: Request) -> None:
        assert request.width <= self.max_batch, "the facade refuses what can never run"
        blocks = request.width * blocks_for(request.longest, self.allocator.block_size)
        assert blocks <= self.allocator.num_blocks, "the facade refuses what can never fit"
        self.waiting.arrive(request)

    @property
    def cancelled(self) -> list[Request]:
        """The requests whose `cancelled` is set, to be removed."""
        return [request for request in (*self.running, *self.waiting) if request.cancelled]

    def admit(self) -> list[Request]:
        """Start waiting requests in turn while they fit; returns those that start."""
        started: list[Request] = []
        later: set[str] = set()
        while heads := [head for head in self.waiting.heads(self._rows()) if head.client not in later]:
            outcome = self._place(heads[0])
            if outcome == "started":
                started.append(heads[0])
            elif outcome == "later":
                later.add(heads[0].client)
            else:
                break
        return [request for request in started if request in self.running]

    def plan(self) -> StepPlan:
        """The next step over the running requests."""
        self._make_room()
        plan = StepPlan(copies=self._copies, preempted=self._preempted)
        self._copies, self._preempted = [], []
        budget = self.step_tokens
        # Stable: answers first, then prompts, each in order.
        for request in sorted(self.running, key=lambda request: request.pending > request.width):
            # Beams go on together: until all can, each leaves its last position.
            left = int(request.pending > budget and len(request.sequences) > 1)
            for sequence in request.sequences:
                count = min(sequence.pending - left, budget)
                if count > 0:
                    plan.spans.append(Span(request, sequence, sequence.computed, sequence.computed + count))
                    budget -= count
        spare = self.guessed_rows - (self.step_tokens - budget)
        return replace(plan, spans=self._with_guesses(plan.spans, spare)) if spare > 0 else plan

    def advance(self, request: Request, sequence: Sequence, end: int) -> None:
        """Positions up to `end` have been computed; others may use their keys and values."""
        size = self.allocator.block_size
        first, sequence.computed = sequence.computed // size, end
        for index in range(first, end // size):
            self._tell(request, sequence, index, (index + 1) * size)
        if not sequence.pending:
            self.waiting.charge(request.client, 1)

    def fork(self, request: Request, parents: list[int], tokens: list[int]) -> None:
        """Replace the sequences by children: child i continues sequence parents[i] with tokens[i]."""
        before = request.sequences
        request.sequences = []
        for parent, token in zip(parents, tokens, strict=True):
            sequence = before[parent]
            child = Sequence(
                list(sequence.token_ids),
                sequence.logits_from,
                sequence.computed,
                self.allocator.fork(sequence.table),
                list(sequence.prefixes),
            )
            child.append(token)
            request.sequences.append(child)
        for sequence in before:
            self.allocator.release(sequence.table)

    def distrust(self, request: Request) -> None:
        """What its blocks hold is not to be found by anybody, from now on and when it ends."""
        for sequence in request.sequences:
            self.allocator.forget(sequence.table)
            sequence.computed = 0

    def remove(self, request: Request) -> None:
        """Take a request out, wherever it is, and free its blocks."""
        if request in self.running:
            self.running.remove(request)
        else:
            self.waiting.take_out(request)
        self._release(request)
        request.sequences = []
        self.waiting.leave(request)

    def _rows(self) -> Counter[str]:
        """Rows that each client runs."""
        rows: Counter[str] = Counter()
        for request in self.running:
            rows[request.client] += request.width
        return rows

    def _place(self, request: Request) -> Literal["started", "later", "full"]:
        """Start a request; "later" if what it needs next is being computed for another one."""
        if self._who_gives_way(request, 0) is None:
            return "full"
        for sequence in request.sequences:
            # The last position is computed whatever the cache holds: its logits are wanted.
            units = request.units(sequence, 0, sequence.logits_from)
            sequence.table, sequence.computed = self.allocator.match(request.root, units)
        if self._is_coming(request):
            self._let_go(request)
            return "later"
        growth = sum(self._growth(other) for other in (*self.running, request)) if self.running else 0
        giving_way = self._who_gives_way(request, self._missing(request) + growth)
        if giving_way is None:
            self._let_go(request)
            if self.running:
                return "full"
            # By itself it fits, but perhaps not beside a block that it would have to copy.
        for other in giving_way or ():
            self.preempt(other)
        self._own_pending(request)
        self.waiting.take_out(request)
        self.running.append(request)
        self.waiting.charge(request.client, sum(sequence.pending for sequence in request.sequences))
        return "started"

    def _is_coming(self, request: Request) -> bool:
        """Whether a running request has still to compute the block that this one needs first."""
        size, sequence = self.allocator.block_size, request.sequences[0]
        index = sequence.computed // size
        if not self.allocator.keeps or (index + 1) * size > sequence.logits_from:
            return False
        return self._prefix(request, sequence, index + 1) in (
            self._prefix(other, theirs, i + 1)
            for other in self.running
            for theirs in other.sequences
            for i in range(theirs.computed // size, len(theirs.token_ids) // size)
        )

    def _who_gives_way(self, request: Request, blocks: int) -> list[Request] | None:
        """Those that must wait again for a request that needs so many blocks to run: the latest of the client
        that runs most, as long as that makes shares more even; None if that is not enough."""
        rows, running, chosen = self._rows(), list(self.running), list[Request]()
        while not (
            rows.total() + request.width <= self.max_batch
            and all(request.goes_with(other) for other in running)
            and blocks <= self.allocator.free_blocks + self._held_by(chosen)
        ):
            client, most = max(rows.items(), key=lambda item: item[1], default=("", 0))
            latest = next((other for other in reversed(running) if other.client == client), None)
            if latest is None or rows[request.client] + request.width > most - latest.width:
                return None
            running.remove(latest)
            rows[client] -= latest.width
            chosen.append(latest)
        return chosen

    def _held_by(self, requests: list[Request]) -> int:
        """Blocks that nobody else holds."""
        held = Counter(
            block for request in requests for sequence in request.sequences for block in sequence.table
        )
        return sum(self.allocator.owners(block) == count for block, count in held.items())

    def _make_room(self) -> None:
        """Every running sequence gets the blocks of its next positions."""
        for request in list(self.running):
            while request in self.running and self._missing(request) > self.allocator.free_blocks:
                if self.running == [request]:
                    # Alone it fits, for then only what its own rows share is copied.
                    self.allocator.forget(block for s in request.sequences for block in s.table)
                    break
                self.preempt(self.running[-1])
            if request in self.running:
                self._own_pending(request)

    def _with_guesses(self, spans: list[Span], rows: int) -> list[Span]:
        """The spans, so many rows of guesses shared out among them."""
        guessed = []
        for left, span in zip(range(len(spans), 0, -1), spans, strict=True):
            request, sequence = span.request, span.sequence
            most = min(rows // left, request.longest - span.end)
            guesses = request.guesser.guess(most) if request.guesser and span.complete and most > 0 else []
            end = span.end + len(guesses)
            if self.allocator.missing(sequence.table, span.end, end) > self.allocator.free_blocks:
                guesses, end = [], span.end
            self.allocator.make_writable(sequence.table, span.end, end)  # no copy: the tail is its own
            guessed.append(replace(span, end=end, guesses=tuple(guesses)))
            rows -= len(guesses)
        return guessed

    def preempt(self, request: Request) -> None:
        """Let a running request wait again; it is computed anew, as far as its blocks have gone by then."""
        self.running.remove(request)
        self._release(request)
        self.waiting.put_back(request)
        self._preempted.append(request)

    def _missing(self, request: Request) -> int:
        return sum(
            self.allocator.missing(sequence.table, sequence.computed, len(sequence.token_ids))
            for sequence in request.sequences
        )

    def _growth(self, request: Request) -> int:
        """Blocks to keep back for what a request may still write: one for each row that can grow."""
        size = self.allocator.block_size
        held = sum(blocks_for(len(sequence.token_ids), size) for sequence in request.sequences)
        return min(request.width, request.width * blocks_for(request.longest, size) - held)

    def _own_pending(self, request: Request) -> None:
        for sequence in request.sequences:
            copies = self.allocator.make_writable(sequence.table, sequence.computed, len(sequence.token_ids))
            self._copies += copies

    def _release(self, request: Request) -> None:
        """Give back the blocks of a request; what is computed stays known."""
        planned = {target for _, target in self._copies}
        for sequence in request.sequences:
            index, count = divmod(sequence.computed, self.allocator.block_size)
            if count and sequence.table[index] not in planned:
                self._tell(request, sequence, index, sequence.computed)
            self._copies = [copy for copy in self._copies if copy[1] not in sequence.table]
        self._let_go(request)

    def _let_go(self, request: Request) -> None:
        for sequence in request.sequences:
            self.allocator.release(sequence.table)
            sequence.computed = 0

    def _tell(self, request: Request, sequence: Sequence, index: int, end: int) -> None:
        """Let others find what block `index` of the sequence holds, up to position `end`."""
        units = request.units(sequence, index * self.allocator.block_size, end)
        self.allocator.tell(sequence.table[index], self._prefix(request, sequence, index), units)

    def _prefix(self, request: Request, sequence: Sequence, index: int) -> bytes:
        """What stands before block `index`, as a digest."""
        known, size = sequence.prefixes, self.allocator.block_size
        if not known:
            known.append(request.root)
        for i in range(len(known) - 1, index):
            known.append(prefix_digest(known[i], request.units(sequence, i * size, (i + 1) * size)))
        return known[index]
