"""Answers for asyncio: the model runs in a thread of its own, as long as somebody is waiting for it.

`Pump` is that thread: it steps the loop while asynchronous answers are under way, hands their events to the
event loops that wait for them, and ends soon after the last answer. Prompts are read in a few others
(`Readers`). The event loop itself never waits for a step or a picture.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from owl_fast.engine.loop import Loop
from owl_fast.engine.outputs import Event, Output, joined
from owl_fast.engine.request import Request
from owl_fast.errors import OwlError

LINGER = 0.2  # seconds that a thread waits for more to do: starting one holds up the event loop

logger = logging.getLogger(__name__)
T = TypeVar("T")


class _Listener:
    """The answers to one prompt under way, and where their events go."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.open = len(requests)  # answers whose last event has not been handed over
        # What the reader finds next: an event, an error that ends the answers, or that it has waited enough.
        self.events: asyncio.Queue[Event | Exception | None] = asyncio.Queue()
        self.waiting = asyncio.get_running_loop()
        self.ends_only = False

    def new_events(self) -> list[Event]:
        """What there is to hand over; called in the pump's thread."""
        events = []
        for request in self.requests:
            while request.events:
                event = request.events.popleft()
                is_end = event.finish_reason is not None
                self.open -= is_end
                if is_end or not self.ends_only:
                    events.append(event)
        return events

    def cancel(self) -> None:
        for request in self.requests:
            request.cancelled = True


class Pump:
    """Steps the loop while there are listeners."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._turn = threading.Condition()
        self._listeners: list[_Listener] = []
        self._running = False

    def add(self, listener: _Listener) -> None:
        for request in listener.requests:
            self._loop.submit(request)
        with self._turn:
            self._listeners.append(listener)
            self._turn.notify()
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="owl_fast-steps").start()

    def _run(self) -> None:
        while True:
            self._loop.step_for(())  # the answers that a failing step takes with it end with an error each
            with self._turn:
                _deliver(self._listeners)
                self._listeners = [entry for entry in self._listeners if entry.open]
                if not self._turn.wait_for(lambda: self._listeners, LINGER):
                    self._running = False
                    return


class Readers:
    """Threads that read prompts: a few at most, and none when there has been nothing to read for a while."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._threads = self._idle = 0

    async def run(self, function: Callable[[], T]) -> T:
        """What it returns or raises. A caller that is cancelled leaves it alone."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def finish(setter: Callable[[Any], None], value: object) -> None:
            if not done.done():  # cancelled in the meantime
                setter(value)

        def job() -> None:
            try:
                result: object = function()
                setter: Callable[[Any], None] = done.set_result
            except BaseException as error:
                result, setter = error, done.set_exception
            try:
                loop.call_soon_threadsafe(finish, setter, result)
            except RuntimeError:
                logger.info("the event loop was closed before a prompt was read")

        with self._lock:
            self._jobs.put(job)
            is_new = self._threads < self._most and self._jobs.qsize() > self._idle
            self._threads += is_new
        if is_new:
            threading.Thread(target=self._work, name="owl_fast-read").start()
        return await done

    def _work(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            try:
                job = self._jobs.get(timeout=LINGER)
            except queue.Empty:
                job = None
            with self._lock:
                self._idle -= 1
                if job is None and self._jobs.empty():
                    self._threads -= 1
                    return
            if job is not None:
                job()


def _deliver(listeners: Sequence[_Listener]) -> None:
    """Hand over what there is; an event loop is woken once for all that wait in it."""
    mail: dict[asyncio.AbstractEventLoop, list[tuple[_Listener, list[Event]]]] = {}
    for listener in listeners:
        if events := listener.new_events():
            mail.setdefault(listener.waiting, []).append((listener, events))
    for loop, letters in mail.items():
        try:
            loop.call_soon_threadsafe(_put, letters)
        except RuntimeError:  # the event loop has been closed: nobody will ever ask
            for listener in listeners:
                if listener.waiting is loop:
                    listener.cancel()


def _put(letters: Sequence[tuple[_Listener, list[Event]]]) -> None:
    for listener, events in letters:
        for event in events:
            listener.events.put_nowait(event)


class AsyncStream:
    """Asynchronous iterator over the events of the answers to one prompt, or to several.

    Dropping it, leaving it as a context manager, or cancelling the task that waits for it frees their places
    in the engine within a step.
    """

    def __init__(self, pump: Pump, readers: Readers, read: Callable[[], Sequence[Request]]) -> None:
        """read: reads the prompt and its pictures; it is called in a thread, when the first event is asked
        for or `prepare` is, and what it raises comes out there."""
        self._pump, self._readers, self._read = pump, readers, read
        self._listener: _Listener | None = None
        self._unread = 1  # answers whose last event is still to come
        self._submitted = self._started = self._cancelled = self._ended = self._ends_only = False

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Event:
        """The next event; OwlError when the request cannot be made, or an answer failed, which ends the
        others too."""
        event = await self.next()
        assert event is not None
        return event

    async def next(self, patience: float | None = None) -> Event | None:
        """The same with a limit: None when for so many seconds there was none, and it can be asked again."""
        if self._ended:
            raise StopAsyncIteration
        try:
            await self.prepare()
            listener = self._listener
            assert listener is not None
            if not self._submitted:
                self._submit(listener)
            event = await self._next(listener, patience)
            if event is not None and event.finish_reason == "error":
                raise OwlError(listener.requests[event.index].error)
        except BaseException:
            self._ended = True
            self.cancel()
            raise
        self._ended = self._unread == 0
        return event

    async def prepare(self) -> int:
        """Read the prompt, which the first event waits for otherwise; returns the positions that it takes,
        counted for every answer. Nothing is computed yet."""
        if self._listener is None:
            requests = await self._readers.run(self._read)
            self._listener, self._unread = _Listener(requests), len(requests)
            self._listener.ends_only = self._ends_only
            if self._cancelled:
                self._listener.cancel()
        return sum(len(request.prompt_ids) for request in self._listener.requests)

    def skip_to_the_ends(self) -> None:
        """Hand over nothing but the last event of each answer: for those who want it whole, and an event loop
        that is not to be woken for each token. To be said before the first event is asked for."""
        self._ends_only = True
        if self._listener is not None:
            self._listener.ends_only = True

    @property
    def started(self) -> bool:
        """Whether one of the answers has begun to be computed."""
        if not self._started and self._listener is not None:
            # No generator: a server asks this of everything that waits, for every request that comes.
            for request in self._listener.requests:
                if request.clock.started:
                    self._started = True
        return self._started

    @property
    def has_events(self) -> bool:
        """Whether there is one that has not been read."""
        return self._listener is not None and not self._listener.events.empty()

    def fail(self, error: Exception) -> None:
        """End the answers; whoever reads finds this error once the events that are there are read. To be
        called where the events are read, and of use also when the model hangs."""
        self.cancel()
        if self._listener is not None:
            self._listener.events.put_nowait(error)

    def _submit(self, listener: _Listener) -> None:
        self._submitted = True
        self._pump.add(listener)

    async def _next(self, listener: _Listener, patience: float | None = None) -> Event | None:
        alarm = None
        if patience is not None and listener.events.empty():
            loop = asyncio.get_running_loop()
            alarm = loop.call_later(patience, listener.events.put_nowait, None)
        try:
            event = await listener.events.get()
        finally:
            if alarm is not None:
                alarm.cancel()
        if isinstance(event, Exception):
            raise event
        self._unread -= event is not None and event.finish_reason is not None
        return event

    def cancel(self) -> None:
        """End the answers at the next step; what has been said stays, the last events still come."""
        self._cancelled = True
        if self._listener is not None:
            self._listener.cancel()

    async def aclose(self) -> None:
        """Cancel, and return when the places are free."""
        self.cancel()
        while self._submitted and self._unread:
            assert self._listener is not None
            await self._next(self._listener)
        self._ended = True

    @property
    def output(self) -> Output:
        """The whole answer (of several: the first, with the others), once the last event has come."""
        if self._listener is None or self._listener.open:
            raise OwlError("the answer is still being generated; read the stream to its end first")
        return joined([request.output for request in self._listener.requests])

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        self.cancel()
