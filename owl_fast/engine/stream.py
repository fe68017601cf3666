"""A streamed answer, as the caller holds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

from owl_fast.engine.loop import Loop
from owl_fast.engine.outputs import Event, Output
from owl_fast.engine.request import Request
from owl_fast.errors import OwlError


class Stream:
    """Iterator over the events of one answer, which begins its way through the engine here.

    Dropping it early frees its place in the engine at the next step; `close`, or using it as a context
    manager, at once.
    """

    def __init__(self, loop: Loop, request: Request, on_end: Callable[[Output], None] | None = None) -> None:
        """on_end: called with the whole answer when its last event is read, unless it failed."""
        self._loop = loop
        self._request = request
        self._on_end = on_end
        loop.submit(request)

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        """The next event; OwlError when the request failed."""
        request = self._request
        while not request.events:
            if request.finished:
                raise StopIteration
            self._loop.step()
        event = request.events.popleft()
        if event.finish_reason == "error":
            raise OwlError(request.error)
        if event.finish_reason is not None and self._on_end is not None:
            self._on_end(request.output)
        return event

    def cancel(self) -> None:
        """End the answer at the next step; what has been said stays.

        Safe in a signal handler and from another thread.
        """
        self._request.cancelled = True

    def close(self) -> None:
        """Cancel, and free what the answer holds now."""
        self.cancel()
        self._loop.reap()

    @property
    def output(self) -> Output:
        """The whole answer, once the last event has come."""
        if not self._request.finished:
            raise OwlError("the answer is still being generated; read the stream to its end first")
        return self._request.output

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exception: object) -> Literal[False]:
        self.close()
        return False

    def __del__(self) -> None:
        self.cancel()
