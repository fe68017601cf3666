"""The server process: uvicorn on one socket, from its start to an end that finishes what is under way."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from owl_fast.serving import logs
from owl_fast.serving.connection import Config, Connection
from owl_fast.serving.limits import Limits

_START_FAILED = 3  # as uvicorn's own command says it
_TICK = 0.05
_LAST_SECOND = 1.0  # until the process ends whatever it still does

Started = Callable[[str, int], None]
Drained = Callable[[], Awaitable[None] | None]

logger = logging.getLogger(__name__)


def run(
    app: ASGIApp,
    host: str,
    port: int,
    limits: Limits,
    *,
    started: Started | None = None,
    on_drained: Drained | None = None,
) -> int:
    """Serve until SIGINT or SIGTERM; the exit code: 0, or 3 when the application's startup failed.

    started: called with address and port (never 0) once requests are answered. on_drained: called when the
    drain time is over and requests are still running; it ends their replies, for which limits.farewell
    remains. The application's lifespan is told last. OSError when the address cannot be listened on.
    """
    server = Server(app, host, port, limits, started=started, on_drained=on_drained)
    try:
        asyncio.run(server.serve(sockets=[server.socket]))
    except SystemExit as end:  # uvicorn's way to say that the startup failed
        return int(end.code or 0)
    finally:
        server.socket.close()
    return 0 if server.started else _START_FAILED


class Server(uvicorn.Server):
    """`should_exit`, set in any thread, ends it as SIGTERM does."""

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        port: int,
        limits: Limits,
        *,
        started: Started | None = None,
        on_drained: Drained | None = None,
    ) -> None:
        super().__init__(Config(app, limits))
        self._limits, self._tell_started, self._tell_drained = limits, started, on_drained
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.socket = socket.create_server((host, port), family=family, backlog=limits.connections)
        # Connections inherit it. asyncio sets it on sockets that know their protocol, which these do not, and
        # without it a reply waits 40 ms for the acknowledgement of its own head.
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.address: tuple[str, int] = self.socket.getsockname()[:2]
        logs.install(limits)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started and self._tell_started is not None:
            # Not before the main loop runs: older uvicorns end without a shutdown on signals until then.
            asyncio.get_running_loop().call_soon(self._tell_started, *self.address)

    async def on_tick(self, counter: int) -> bool:
        self._check()
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains; the second ends at once, also when a thread of the application is busy."""
        if self.should_exit:
            self.force_exit = True
            last = threading.Timer(_LAST_SECOND, os._exit, (0,))
            last.daemon = True
            last.start()
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await asyncio.sleep(_TICK)  # who had come before the signal is let in,
        for server in self.servers:
            server.close()
        await asyncio.sleep(_TICK)  # and what they ask is read
        now = asyncio.get_running_loop().time
        if not await self._idle(now() + self._limits.drain):
            end = now() + self._limits.farewell
            await self._say_farewell()
            await self._idle(end)
        for connection in self._connections():
            connection.abort()
        if self.force_exit:
            return  # asyncio.run cancels what is left
        if tasks := set(self.server_state.tasks):
            _, tasks = await asyncio.wait(tasks, timeout=_LAST_SECOND)
            for task in tasks:
                task.cancel()
        await self.lifespan.shutdown()

    async def _say_farewell(self) -> None:
        if self._tell_drained is None or self.force_exit:
            return
        try:
            if inspect.isawaitable(told := self._tell_drained()):
                await asyncio.wait_for(told, self._limits.farewell)
        except Exception:
            logger.exception("the running requests could not be told of the end")

    async def _idle(self, end: float) -> bool:
        """Wait until `end` for every connection to end with the request it has; whether all have."""
        while self.server_state.connections or self.server_state.tasks:
            if self.force_exit or asyncio.get_running_loop().time() > end:
                return False
            for connection in self._connections():
                connection.shutdown()  # each time: some were only just accepted
            self._check()
            await asyncio.sleep(_TICK)
        return True

    def _check(self) -> None:
        now = asyncio.get_running_loop().time()
        for connection in self._connections():
            connection.check(now)

    def _connections(self) -> list[Connection]:
        return [one for one in self.server_state.connections if isinstance(one, Connection)]
