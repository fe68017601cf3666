"""Answers for asyncio: the model runs in a thread of its own, as long as somebody is waiting for it.

`Pump` is that thread: it steps the loop while asynchronous answers are under way, hands their events to the
event loops that wait for them, and ends with the last answer. The event loop itself never waits for a step.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from owl_fast.engine.loop import Loop
from owl_fast.engine.outputs import Event, Output
from owl_fast.engine.request import Request
from owl_fast.errors import OwlError

logger = logging.getLogger(__name__)
T = TypeVar("T")


class _Listener:
    """One answer under way and where its events go."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self._waiting = asyncio.get_running_loop()

    def deliver(self) -> None:
        """Hand over what there is; called in the pump's thread."""
        events = self.request.events
        try:
            while events:
                self._waiting.call_soon_threadsafe(self.events.put_nowait, events.popleft())
        except RuntimeError:  # the event loop has been closed: nobody will ever ask
            self.request.cancelled = True


class Pump:
    """Steps the loop while there are listeners."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._listeners: list[_Listener] = []
        self._running = False

    def add(self, listener: _Listener) -> None:
        self._loop.submit(listener.request)
        with self._lock:
            self._listeners.append(listener)
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="owl_fast-steps").start()

    def _run(self) -> None:
        while True:
            try:
                self._loop.step()
            except Exception:
                # The answers it took with it end with an error each; the next step starts clean.
                logger.exception("a step failed")
            with self._lock:
                for listener in self._listeners:
                    listener.deliver()
                self._listeners = [entry for entry in self._listeners if not entry.request.finished]
                if not self._listeners:
                    self._running = False
                    return


class AsyncStream:
    """Asynchronous iterator over the events of one answer.

    Dropping it, leaving it as a context manager, or cancelling the task that waits for it frees its place in
    the engine within a step.
    """

    def __init__(self, pump: Pump, prepare: Callable[[], Request]) -> None:
        """prepare: reads the prompt and its pictures; it is called in a thread, when the first event is
        asked for, and what it raises comes out there."""
        self._pump, self._prepare = pump, prepare
        self._listener: _Listener | None = None
        self._cancelled = self._ended = False

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Event:
        """The next event; OwlError when the request cannot be made, or failed."""
        if self._ended:
            raise StopAsyncIteration
        try:
            if self._listener is None:
                await self._start()
            assert self._listener is not None
            event = await self._listener.events.get()
        except BaseException:
            self._ended = True
            self.cancel()
            raise
        self._ended = event.finish_reason is not None
        if event.finish_reason == "error":
            raise OwlError(self._listener.request.error)
        return event

    async def _start(self) -> None:
        request = await _in_thread(self._prepare)
        request.cancelled = self._cancelled
        self._listener = _Listener(request)
        self._pump.add(self._listener)

    def cancel(self) -> None:
        """End the answer at the next step; what has been said stays, the last event still comes."""
        self._cancelled = True
        if self._listener is not None:
            self._listener.request.cancelled = True

    async def aclose(self) -> None:
        """Cancel, and return when the place is free."""
        self.cancel()
        while self._listener is not None and not self._ended:
            event = await self._listener.events.get()
            self._ended = event.finish_reason is not None
        self._ended = True

    @property
    def output(self) -> Output:
        """The whole answer, once the last event has come."""
        if self._listener is None or not self._listener.request.finished:
            raise OwlError("the answer is still being generated; read the stream to its end first")
        return self._listener.request.output

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
