"""A streamed answer, as the caller holds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from owl_fast.engine.loop import Loop
from owl_fast.engine.outputs import Event, Output, joined
from owl_fast.engine.request import Request
from owl_fast.errors import OwlError


class Stream:
    """Iterator over the events of the answers to one prompt, which begin their way through the engine here.

    Dropping it early frees their places in the engine at the next step; `close`, or using it as a context
    manager, at once.
    """

    def __init__(
        self, loop: Loop, requests: Sequence[Request], on_end: Callable[[Output], None] | None = None
    ) -> None:
        """on_end: called with the output when the last event is read, unless an answer failed."""
        self._loop = loop
        self._requests = requests
        self._unread = list(requests)  # those whose last event is still to be read
        self._on_end = on_end
        for request in requests:
            loop.submit(request)

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        """The next event; OwlError when an answer failed, which ends the others too."""
        if not self._unread:
            raise StopIteration
        while (request := next((one for one in self._unread if one.events), None)) is None:
            self._loop.step_for(self._requests)
        event = request.events.popleft()
        if event.finish_reason is not None:
            self._unread.remove(request)
        if event.finish_reason == "error":
            self.cancel()
            self._unread = []
            raise OwlError(request.error)
        if not self._unread and self._on_end is not None:
            self._on_end(self.output)
        return event

    def cancel(self) -> None:
        """End the answers at the next step; what has been said stays.

        Safe in a signal handler and from another thread.
        """
        for request in self._requests:
            request.cancelled = True

    def close(self) -> None:
        """Cancel, and free what the answers hold now."""
        self.cancel()
        self._loop.reap()

    @property
    def output(self) -> Output:
        """The whole answer (n above 1: the first, with the others), once the last event has come."""
        if not all(request.finished for request in self._requests):
            raise OwlError("the answer is still being generated; read the stream to its end first")
        return joined([request.output for request in self._requests])

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exception: object) -> Literal[False]:
        self.close()
        return False

    def __del__(self) -> None:
        self.cancel()
