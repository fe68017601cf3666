"""A small OpenAI-compatible server on loopback whose answers are written down beforehand."""

from __future__ import annotations

import json
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# What a script may hold beside text: bytes are sent as they are, DROP cuts the connection.
DROP = object()
Script = list[Any]


def chunk(text: str, reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}]}


USAGE = {"choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": 3}}


class FakeServer:
    """scripts: for each request in turn the parts of its stream, or (status, body); `default` afterwards.

    gone: set once a client has left an endless answer.
    """

    def __init__(self, default: Callable[[dict[str, Any]], Iterator[Any]] | None = None) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.scripts: deque[Any] = deque()
        self.default = default
        self.models: Any = {"object": "list", "data": [{"id": "served-owl", "object": "model"}]}
        self.gone = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                owner._get(self)

            def do_POST(self) -> None:
                owner._post(self)

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    @contextmanager
    def running(self) -> Iterator[FakeServer]:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def _get(self, handler: BaseHTTPRequestHandler) -> None:
        self.headers.append(dict(handler.headers))
        self._whole(handler, *(self.models if isinstance(self.models, tuple) else (200, self.models)))

    def _post(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        self.headers.append(dict(handler.headers))
        self.requests.append(json.loads(body))
        script = self.scripts.popleft() if self.scripts else self.default and self.default(self.requests[-1])
        if isinstance(script, tuple):
            self._whole(handler, *script)
            return
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream; charset=utf-8")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        try:
            self._stream(handler, script)
        except OSError:
            self.gone.set()
            handler.close_connection = True

    def _stream(self, handler: BaseHTTPRequestHandler, script: Any) -> None:
        for part in script:
            if part is DROP:
                handler.close_connection = True
                return
            data = part if isinstance(part, bytes) else b"data: " + json.dumps(part).encode() + b"\n\n"
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            handler.wfile.flush()
        handler.wfile.write(b"0\r\n\r\n")

    def _whole(self, handler: BaseHTTPRequestHandler, status: int, body: Any) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no news; anything else is a fault of the test."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def answer(text: str, reason: str = "stop") -> Script:
    """A whole stream: role, the text word by word, reason, usage, [DONE]."""
    words = [chunk(word + " ") for word in text.split(" ")[:-1]] + [chunk(text.split(" ")[-1])]
    role = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    return [role, *words, chunk("", reason), USAGE, b"data: [DONE]\n\n"]
