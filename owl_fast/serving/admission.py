"""Who may wait: so many requests, with prompts of so many positions, shared out among clients.

Whose turn it is among those that wait, the engine decides. Here is decided who waits at all: when the queue
is full, the client that holds most of it gives its newest place to one that has less; and who was sent away
finds room when it comes again, because those that come straight from an answer leave some to it.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Protocol

from owl_fast.serving.errors import ApiError
from owl_fast.serving.limits import Limits


class Answering(Protocol):
    """What admission needs of the answers to a request (see engine.async_stream.AsyncStream)."""

    @property
    def started(self) -> bool: ...

    def fail(self, error: Exception, /) -> None: ...


class Ticket:
    """The place of a request, from its arrival to its end. positions: of its prompt, once counted."""

    def __init__(self, client: str) -> None:
        self.client = client
        self.arrived = time.monotonic()
        self.positions = 0
        self._answers: Answering | None = None
        self._error: ApiError | None = None

    def attend(self, answers: Answering) -> None:
        """From here on `end` reaches them; ApiError if it came before."""
        self._answers = answers
        self.check()

    def check(self) -> None:
        """ApiError if the place is lost."""
        if self._error is not None:
            raise self._error

    def end(self, error: ApiError) -> None:
        """Whatever the request is doing, it is over."""
        self._error = self._error or error
        if self._answers is not None:
            self._answers.fail(error)

    @property
    def is_over(self) -> bool:
        """Whether it was ended."""
        return self._error is not None

    @property
    def waits(self) -> bool:
        return not self.is_over and not (self._answers is not None and self._answers.started)


class Admission:
    """tickets: of all requests that are under way, in order of arrival."""

    def __init__(self, limits: Limits) -> None:
        self.tickets: list[Ticket] = []
        self._limits = limits
        self._refused: dict[str, float] = {}  # clients that are to come again, and until when that counts
        self._left = time.monotonic()  # the one that left last
        self._gap = 0.1  # seconds from one that leaves to the next, of late, while others wait

    @property
    def waiting(self) -> list[Ticket]:
        return [ticket for ticket in self.tickets if ticket.waits]

    def check(self, client: str) -> None:
        """ApiError 429 if there is no place now: before more is done for the request than to hear of it."""
        self._room(Ticket(client))

    def enter(self, client: str) -> Ticket:
        """A place for a request; ApiError 429 if there is none. It is to `leave` whatever happens."""
        ticket = Ticket(client)
        self._end(self._room(ticket))
        self._refused.pop(client, None)
        self.tickets.append(ticket)
        return ticket

    def count(self, ticket: Ticket, positions: int) -> None:
        """Now it is known what the prompt takes. ApiError 429 if that is too much beside the others'."""
        ticket.positions = positions
        waiting = [other for other in self.waiting if other is not ticket]
        most = self._limits.waiting_tokens
        self._end(self._giving_way(ticket, waiting, lambda one: one.positions, most))

    def leave(self, ticket: Ticket) -> None:
        self.tickets.remove(ticket)
        if ticket.is_over:
            return
        now = time.monotonic()
        if self.waiting:
            self._gap += 0.1 * (now - self._left - self._gap)
        self._left = now

    def end_all(self, error: ApiError) -> None:
        for ticket in list(self.tickets):
            ticket.end(error)

    def overdue(self) -> ApiError:
        """For one that waited too long."""
        return ApiError(
            503, "the server is busy and the request has waited too long; try again later",
            code="overloaded", retry_after=self._retry_after,
        )  # fmt: skip

    def _room(self, newcomer: Ticket) -> list[Ticket]:
        """Those whose places it gets. ApiError; it is expected to come again."""
        now, most, waiting = time.monotonic(), self._limits.waiting, self.waiting
        self._refused = {name: until for name, until in self._refused.items() if until > now}
        if self._refused and newcomer.client not in self._refused:
            most = min(most, max(most - most // 4, len(waiting)))
        try:
            return self._giving_way(newcomer, waiting, lambda _: 1, most)
        except ApiError as error:
            self._refused[newcomer.client] = now + 2 * (error.retry_after or 1)
            raise

    def _giving_way(
        self, newcomer: Ticket, waiting: list[Ticket], size: Callable[[Ticket], int], most: int
    ) -> list[Ticket]:
        """The newest of those that hold most, until the newcomer fits among those that wait; ApiError if
        shares do not get more even by that."""
        giving_way: list[Ticket] = []
        while waiting and sum(map(size, waiting)) + size(newcomer) > most:
            shares: Counter[str] = Counter()
            for ticket in waiting:
                shares[ticket.client] += size(ticket)
            client, share = shares.most_common(1)[0]
            last = next(ticket for ticket in reversed(waiting) if ticket.client == client)
            if client == newcomer.client or share - size(last) < shares[newcomer.client] + size(newcomer):
                raise self._full()
            waiting.remove(last)
            giving_way.append(last)
        return giving_way

    def _end(self, tickets: Iterable[Ticket]) -> None:
        for ticket in tickets:
            ticket.end(self._full())

    def _full(self) -> ApiError:
        return ApiError(
            429, "too many requests are waiting; try again later", code="queue_full",
            retry_after=self._retry_after,
        )  # fmt: skip

    @property
    def _retry_after(self) -> int:
        seconds = self._gap * (len(self.waiting) + len(self._refused))
        return min(max(math.ceil(seconds), 1), math.ceil(self._limits.wait))
