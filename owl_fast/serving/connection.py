"""One client's connection: h11 as uvicorn drives it, with the deadlines and ends it leaves to a proxy.

Heads and bodies must come in time, readers must take what they asked for, and one connection too many takes
the place of whoever keeps the server waiting longest. `check`, called ten times a second, judges all of it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from owl_fast.serving.errors import ApiError
from owl_fast.serving.guard import SECURITY_HEADERS
from owl_fast.serving.limits import Limits

_CLOSE = (b"connection", b"close")
_RESET = struct.pack("ii", 1, 0)  # linger, for no time


class Config(uvicorn.Config):
    """uvicorn's settings for these connections."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        super().__init__(
            app,
            http=Connection,
            loop="asyncio",  # not uvloop, which other packages may bring and no test here meets
            ws="none",
            lifespan="on",
            interface="asgi3",
            log_config=None,
            log_level="error",  # else whoever sends what is no HTTP writes a line in the log each time
            access_log=False,
            server_header=False,
            proxy_headers=False,  # whoever is on this machine could name any address
            h11_max_incomplete_event_size=limits.headers,
        )
        self.timeout_keep_alive = limits.keep_alive  # type: ignore[assignment]  # a float serves as well
        self.limits = limits


class Connection(H11Protocol, asyncio.BufferedProtocol):
    """Buffered, so that no more is read at once than a head may have: h11 never parses a far larger one."""

    def __init__(self, config: Config, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self._limits = config.limits
        self._application, self.app = self.app, self._answer
        self._buffer = memoryview(bytearray(self._limits.headers))
        self._wire: _Transport
        self._reading: Any = h11.IDLE  # what is to come: a head, (the rest of) a body, or nothing as yet
        self._since = self._checked = self._progress = self.loop.time()
        self._received = self._taken = 0  # bytes: in since _since; out at _progress
        self.lingering = False

    # From the socket.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._wire = _Transport(transport, self)
        super().connection_made(self._wire)  # type: ignore[arg-type]
        others = [one for one in self.connections if isinstance(one, Connection) and one is not self]
        others = [one for one in others if not one.gone]
        if len(others) < self._limits.connections:
            return
        if waiting := [one for one in others if one.idle]:
            min(waiting, key=lambda one: one._since).abort()
        else:
            self.refuse(ApiError(503, "too many connections; try again", retry_after=1), linger=True)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._received += nbytes
        if self.lingering:
            return
        if self.timeout_keep_alive_task is not None:  # the first bytes of another request
            self._since = self.loop.time()
        self.data_received(bytes(self._buffer[:nbytes]))
        self._note_phase()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note_phase()

    def send_400_response(self, msg: str) -> None:
        if self._reading is h11.IDLE and self._received > self._limits.headers:
            self.refuse(self._head_too_large())
        else:
            self.refuse(self._not_http())

    def _note_phase(self) -> None:
        state = self.conn.their_state
        if state is not self._reading and state is not h11.ERROR:
            self._reading, self._since, self._received = state, self.loop.time(), 0

    # Between socket and application.

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if error := self._fault(scope):
            self.refuse(error)
            return

        async def send_(message: Message) -> None:
            if message["type"] == "http.response.start" and self._is_last():
                message = {**message, "headers": [*message.get("headers", ()), _CLOSE]}
            await send(message)

        try:
            await self._application(scope, receive, send_)
        except asyncio.CancelledError:
            if not self._wire.closing:
                raise  # by whom? uvicorn logs it

    def _is_last(self) -> bool:
        """Whether no request can follow: the server ends, or the rest of this one's body will not be read."""
        return not self.cycle.keep_alive or self.conn.their_state is h11.SEND_BODY

    def _fault(self, scope: Scope) -> ApiError | None:
        """What is wrong with a head that h11 let pass."""
        size = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if size + len(scope["raw_path"]) + len(scope["query_string"]) > self._limits.headers:
            return self._head_too_large()
        if scope["http_version"] not in ("1.0", "1.1"):
            return self._not_http()
        names = {name for name, _ in scope["headers"]}
        if b"transfer-encoding" in names and (
            b"content-length" in names or scope["http_version"] != "1.1"
        ):  # a proxy may see the body end elsewhere than we do
            return ApiError(400, "wanted either Content-Length or, in HTTP/1.1, Transfer-Encoding")
        return None

    def _head_too_large(self) -> ApiError:
        return ApiError(431, f"the request's line and headers are larger than {self._limits.headers} bytes")

    def _not_http(self) -> ApiError:
        return ApiError(400, "this is not HTTP/1.1, or not all of it")

    # Who overstays.

    def check(self, now: float) -> None:
        """End what takes too long."""
        passed, self._checked = now - self._checked, now
        self._check_reader(now)
        if self._wire.closing:
            return
        if self.lingering:
            if self._too_slow(now - self._since):
                self.abort()
        elif self._reading is h11.SEND_BODY:
            if self.flow.read_paused or self.cycle.waiting_for_100_continue:
                self._since += passed  # they wait for us
            elif self._too_slow(now - self._since):
                self.refuse(ApiError(408, "the request's body came too slowly"))
        elif self.idle and now - self._since > self._limits.header_seconds:
            if self._received:
                self.refuse(ApiError(408, "the request's headers came too slowly"))
            else:
                self._wire.finish()

    def _check_reader(self, now: float) -> None:
        unsent = self._wire.get_write_buffer_size()
        taken = self._wire.written - unsent
        if not unsent or taken != self._taken:
            self._progress, self._taken = now, taken
        elif now - self._progress > self._limits.stall:
            # With a reset, or the kernel would keep what it has for this reader minutes longer.
            self._wire.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.abort()

    def _too_slow(self, seconds: float) -> bool:
        late = seconds > self._limits.body_grace and self._received < seconds * self._limits.body_rate
        return late or seconds > self._limits.body_seconds

    # Ends.

    def refuse(self, error: ApiError, linger: bool = False) -> None:
        """Answer in place of the application, which hears that the client left; then end."""
        started = False
        if self.cycle is not None and not self.cycle.response_complete:
            started = self.cycle.response_started
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self.flow.resume_writing()
        if not started:
            content = error.content
            headers = [(name.encode(), value.encode()) for name, value in error.headers.items()]
            headers += [(b"content-length", str(len(content)).encode()), _CLOSE, *SECURITY_HEADERS]
            headers += self.server_state.default_headers
            reason = STATUS_PHRASES[error.status]
            for event in (
                h11.Response(status_code=error.status, headers=headers, reason=reason),
                h11.Data(data=content),
                h11.EndOfMessage(),
            ):
                self._wire.write(self.conn.send(event))
        self.end(linger)

    def end(self, linger: bool = False) -> None:
        """Close. While the client may still be sending, that would reset the connection and lose the reply:
        then only our side ends, and what comes is dropped, for as long as a body may take."""
        if self._wire.is_closing():
            return
        if linger or self.conn.their_state in (h11.SEND_BODY, h11.ERROR):
            self.lingering, self._since, self._received = True, self.loop.time(), 0
            self.flow.resume_reading()
            try:
                self._wire.write_eof()
            except OSError:  # the client has reset it already
                self.abort()
        else:
            self._wire.finish()

    def abort(self) -> None:
        self._wire.abort()

    def shutdown(self) -> None:
        """End with the request under way, or now."""
        if self.idle:
            self._wire.finish()
        elif not self.cycle.response_complete:
            self.cycle.keep_alive = False

    @property
    def gone(self) -> bool:
        return self._wire.closing and not self._wire.get_write_buffer_size()

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return self._wire.is_closing() or self.conn.their_state is h11.IDLE


class _Transport:
    """asyncio's transport; what is written is counted, and how to close is up to the connection."""

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        self._transport, self._connection = transport, connection
        self.written = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self.written += len(data)
        self._transport.write(data)

    def close(self) -> None:
        self._connection.end()

    def finish(self) -> None:
        self._transport.close()

    def is_closing(self) -> bool:
        return self._connection.lingering or self.closing

    @property
    def closing(self) -> bool:
        return self._transport.is_closing()
