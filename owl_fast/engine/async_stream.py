"""Answers for asyncio: the model runs in a thread of its own, as long as somebody is waiting for it.

`Pump` is that thread: it steps the loop while asynchronous answers are under way, hands their events to the
event loops that wait for them, and ends with the last answer. The event loop itself never waits for a step.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from owl_fast.engine.loop import Loop
from owl_fast.engine.outputs import Event, Output, joined
from owl_fast.engine.request import Request
from owl_fast.errors import OwlError

logger = logging.getLogger(__name__)
T = TypeVar("T")


class _Listener:
    """The answers to one prompt under way, and where their events go."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.open = len(requests)  # answers whose last event has not been handed over
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self._waiting = asyncio.get_running_loop()

    def deliver(self) -> None:
        """Hand over what there is; called in the pump's thread."""
        try:
            for request in self.requests:
                while request.events:
                    event = request.events.popleft()
                    self.open -= event.finish_reason is not None
                    self._waiting.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the event loop has been closed: nobody will ever ask
            self.cancel()

    def cancel(self) -> None:
        for request in self.requests:
            request.cancelled = True


class Pump:
    """Steps the loop while there are listeners."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._listeners: list[_Listener] = []
        self._running = False

    def add(self, listener: _Listener) -> None:
        for request in listener.requests:
            self._loop.submit(request)
        with self._lock:
            self._listeners.append(listener)
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="owl_fast-steps").start()

    def _run(self) -> None:
        while True:
            self._loop.step_for(())  # the answers that a failing step takes with it end with an error each
            with self._lock:
                for listener in self._listeners:
                    listener.deliver()
                self._listeners = [entry for entry in self._listeners if entry.open]
                if not self._listeners:
                    self._running = False
                    return


class AsyncStream:
    """Asynchronous iterator over the events of the answers to one prompt.

    Dropping it, leaving it as a context manager, or cancelling the task that waits for it frees their places
    in the engine within a step.
    """

    def __init__(self, pump: Pump, prepare: Callable[[], Sequence[Request]]) -> None:
        """prepare: reads the prompt and its pictures; it is called in a thread, when the first event is
        asked for, and what it raises comes out there."""
        self._pump, self._prepare = pump, prepare
        self._listener: _Listener | None = None
        self._unread = 1  # answers whose last event is still to come
        self._cancelled = self._ended = False

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Event:
        """The next event; OwlError when the request cannot be made, or an answer failed, which ends the
        others too."""
        if self._ended:
            raise StopAsyncIteration
        try:
            if self._listener is None:
                await self._start()
            assert self._listener is not None
            event = await self._next(self._listener)
            if event.finish_reason == "error":
                raise OwlError(self._listener.requests[event.index].error)
        except BaseException:
            self._ended = True
            self.cancel()
            raise
        self._ended = self._unread == 0
        return event

    async def _start(self) -> None:
        requests = await _in_thread(self._prepare)
        self._listener, self._unread = _Listener(requests), len(requests)
        if self._cancelled:
            self._listener.cancel()
        self._pump.add(self._listener)

    async def _next(self, listener: _Listener) -> Event:
        event = await listener.events.get()
        self._unread -= event.finish_reason is not None
        return event

    def cancel(self) -> None:
        """End the answers at the next step; what has been said stays, the last events still come."""
        self._cancelled = True
        if self._listener is not None:
            self._listener.cancel()

    async def aclose(self) -> None:
        """Cancel, and return when the places are free."""
        self.cancel()
        while self._listener is not None and self._unread:
            await self._next(self._listener)
        self._ended = True

    @property
    def output(self) -> Output:
        """The whole answer (n above 1: the first, with the others), once the last event has come."""
        if self._listener is None or self._listener.open:
            raise OwlError("the answer is still being generated; read the stream to its end first")
        return joined([request.output for request in self._listener.requests])

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        self.cancel()


async def _in_thread(function: Callable[[], T]) -> T:
    """Its result, or what it raises, from a thread that ends with it (asyncio.to_thread keeps its own)."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def finish(setter: Callable[[Any], None], value: object) -> None:
        if not done.done():  # cancelled in the meantime
            setter(value)

    def run() -> None:
        try:
            result: object = function()
            setter: Callable[[Any], None] = done.set_result
        except BaseException as error:
            result, setter = error, done.set_exception
        try:
            loop.call_soon_threadsafe(finish, setter, result)
        except RuntimeError:
            logger.info("the event loop was closed before a prompt was read")

    threading.Thread(target=run, name="owl_fast-read").start()
    return await done
