"""A small ASGI application behind the server's door, and sockets that say exactly what a test wants.

As a program, `python -m tests.serving.tiny DRAIN`, it serves on a free port, which it prints.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import http.client
import io
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from owl_fast.serving.errors import ApiError
from owl_fast.serving.guard import Guard
from owl_fast.serving.limits import Limits
from owl_fast.serving.server import Server, run
from tests.serving.running import running
from tests.serving.waiting import until

QUICK = dataclasses.replace(
    Limits(),
    body=256 << 10,
    header_seconds=0.6,
    body_seconds=3.0,
    body_rate=1 << 10,
    body_grace=0.6,
    keep_alive=0.6,
    stall=0.6,
    drain=0.6,
    farewell=2.0,
)
PATIENT = dataclasses.replace(QUICK, header_seconds=30.0, body_seconds=30.0, body_grace=30.0, keep_alive=30.0)


class Tiny:
    """Routes that do what applications do, good and bad; counts what it was told."""

    def __init__(self) -> None:
        self.running = self.disconnects = self.bodies = 0
        self.clients: list[str] = []
        self.ending = asyncio.Event()  # open streams end with an event

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{step}.complete"})
            return
        self.clients.append(scope["state"]["client"])
        handler = getattr(self, "_" + scope["path"].strip("/").replace("-", "_"), None)
        self.running += 1
        try:
            if handler is None:
                await _whole(send, 200, b"hello")
            else:
                await handler(scope, receive, send)
        finally:
            self.running -= 1

    async def _echo(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnects += 1
                return
            body += message["body"]
            if not message["more_body"]:
                break
        self.bodies += 1
        await _whole(send, 200, body)

    async def _early(self, scope: Any, receive: Any, send: Any) -> None:
        await _whole(send, 200, b"I have heard enough")

    async def _wait(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.disconnects += 1

    async def _endless(self, scope: Any, receive: Any, send: Any) -> None:
        gone = asyncio.ensure_future(self._wait(scope, receive, send))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not gone.done():
            await send({"type": "http.response.body", "body": bytes(64 << 10), "more_body": True})
            await asyncio.sleep(0)

    async def _stream(self, scope: Any, receive: Any, send: Any) -> None:
        gone = asyncio.ensure_future(self._wait(scope, receive, send))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not gone.done() and not self.ending.is_set():
            await send({"type": "http.response.body", "body": b"data: word\n\n", "more_body": True})
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.ending.wait(), 0.02)
        gone.cancel()
        await send({"type": "http.response.body", "body": b"event: error\n\n"})

    async def _pause(self, scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.3)
        await _whole(send, 200, b"hello")

    async def _late(self, scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(3.2)
        await self._echo(scope, receive, send)

    async def _large(self, scope: Any, receive: Any, send: Any) -> None:
        await _whole(send, 200, bytes(16 << 20))

    async def _stuck(self, scope: Any, receive: Any, send: Any) -> None:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)

    async def _raise(self, scope: Any, receive: Any, send: Any) -> None:
        raise LookupError("/a/path\nERROR forged by 127.0.0.1")

    async def _raise_late(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        raise LookupError("late")

    async def _framework(self, scope: Any, receive: Any, send: Any) -> None:
        await _whole(send, 500, b"Internal Server Error in /a/path")
        raise LookupError("the framework has answered this itself")

    async def _own_500(self, scope: Any, receive: Any, send: Any) -> None:
        await _whole(send, 500, b"on purpose")

    async def _nothing(self, scope: Any, receive: Any, send: Any) -> None:
        pass

    async def _busy(self, scope: Any, receive: Any, send: Any) -> None:
        raise ApiError(429, "the queue is full", retry_after=7)


async def _whole(send: Any, status: int, body: bytes) -> None:
    headers = [(b"content-length", b"%d" % len(body)), (b"Server", b"tiny"), (b"x-own", b"1")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@dataclass
class Running:
    server: Server
    tiny: Tiny

    @property
    def port(self) -> int:
        return self.server.address[1]

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def ask(self, *parts: bytes) -> Reply:
        """The only reply on a connection that says `parts`; the server ends it."""
        (reply,) = self.ask_all(*parts)
        return reply

    def ask_all(self, *parts: bytes) -> list[Reply]:
        with self.connect() as client:
            for part in parts:
                client.sendall(part)
            return replies(until_end(client))

    def get(self, path: str = "/", *headers: str) -> Reply:
        return self.ask(self.head("GET", path, *headers, "Connection: close"))

    def post(self, path: str, body: bytes, *headers: str) -> Reply:
        lines = (*headers, "Content-Type: application/json", f"Content-Length: {len(body)}")
        return self.ask(self.head("POST", path, *lines, "Connection: close") + body)

    def head(self, method: str, path: str, *headers: str) -> bytes:
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}", *headers, "", ""]
        return "\r\n".join(lines).encode("latin-1")

    def empty(self, seconds: float = 20.0) -> None:
        """Wait until nobody is connected and nothing runs."""
        until(lambda: not self.server.server_state.connections and not self.tiny.running, seconds)


@contextlib.contextmanager
def serving(limits: Limits = QUICK, **guard: Any) -> Iterator[Running]:
    tiny = Tiny()
    with running(Guard(tiny, limits, **guard), limits) as server:
        yield Running(server, tiny)


@dataclass
class Reply:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """The header's only value."""
        values = [value for found, value in self.headers if found.lower() == name]
        assert len(values) < 2, values
        return values[0] if values else None


def replies(data: bytes) -> list[Reply]:
    """Every reply in what a server sent; all of them carry the headers that make browsers careful."""
    source, found = _Wire(data), []
    while source.tell() < len(data):
        response = http.client.HTTPResponse(source)  # type: ignore[arg-type]
        response.begin()
        reply = Reply(response.status, response.getheaders(), response.read())
        assert reply.header("x-content-type-options") == "nosniff"
        assert reply.header("referrer-policy") == "no-referrer"
        policy = reply.header("content-security-policy")
        assert policy is not None
        assert (
            "default-src 'self'; script-src 'self'; img-src 'self' data: blob:; object-src 'none'" in policy
        )
        assert "base-uri 'none'; frame-ancestors 'none'" in policy
        assert reply.header("server") is None
        found.append(reply)
    return found


class _Wire(io.BytesIO):
    def makefile(self, *_: object) -> _Wire:
        return self

    def close(self) -> None:  # http.client closes what it has read one reply from
        pass


def until_end(client: socket.socket) -> bytes:
    """Everything up to the server's end of the connection."""
    data = b""
    while piece := client.recv(1 << 16):
        data += piece
    return data


def ended(client: socket.socket) -> bool:
    """Whether the server has ended the connection, without waiting."""
    client.setblocking(False)
    try:
        while client.recv(1 << 20):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def main(drain: float) -> int:
    tiny = Tiny()
    limits = dataclasses.replace(QUICK, drain=drain)

    def started(host: str, port: int) -> None:
        print(port, flush=True)

    code = run(Guard(tiny, limits), "127.0.0.1", 0, limits, started=started, on_drained=tiny.ending.set)
    print("ended in order", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
