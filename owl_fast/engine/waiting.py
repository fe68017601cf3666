"""Who waits, and whose turn it is."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from itertools import chain

from owl_fast.engine.request import Request


class WaitingRequests:
    """The requests of each client in order of arrival, and what each client has been served.

    The clients that are present, waiting or running, are served alike: next is the one that has the fewest
    rows running, and of those the one that has got the fewest positions (the virtual token counter of arXiv
    2401.00588). Who comes, also again, starts level with the least served of those that are there.
    """

    def __init__(self) -> None:
        self._queues: dict[str, deque[Request]] = {}
        self._served: dict[str, int] = {}
        self._present: dict[str, int] = {}  # requests of each client, waiting or running

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __iter__(self) -> Iterator[Request]:
        return chain.from_iterable(self._queues.values())

    @property
    def clients(self) -> tuple[str, ...]:
        """Those that are present."""
        return tuple(self._present)

    def arrive(self, request: Request) -> None:
        client = request.client
        if client not in self._present:
            self._served[client] = min(self._served.values(), default=0)
        self._present[client] = self._present.get(client, 0) + 1
        self._queues.setdefault(client, deque()).append(request)

    def put_back(self, request: Request) -> None:
        """Before all that wait of its client."""
        self._queues.setdefault(request.client, deque()).appendleft(request)

    def take_out(self, request: Request) -> None:
        """It waits no longer."""
        queue = self._queues[request.client]
        queue.remove(request)
        if not queue:
            del self._queues[request.client]

    def leave(self, request: Request) -> None:
        """The request, which does not wait, has ended."""
        client = request.client
        self._present[client] -= 1
        if not self._present[client]:
            del self._present[client], self._served[client]

    def charge(self, client: str, positions: int) -> None:
        self._served[client] += positions

    def heads(self, rows: Mapping[str, int]) -> list[Request]:
        """The first request of each client, whose turn comes first before the others. rows: that each client
        runs."""
        clients = sorted(self._queues, key=lambda client: (rows.get(client, 0), self._served[client]))
        return [self._queues[client][0] for client in clients]
