"""The page as the server serves it, in front of a model whose answers are written down beforehand."""

from __future__ import annotations

import json
import mimetypes
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from tests.chat.fake_server import FakeServer, chunk

PAGE = Path(__file__).parents[2] / "owl_fast" / "serving" / "page"
POLICY = (
    "default-src 'self'; script-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
NO_KEY = {"error": {"message": "no valid API key; send one as Authorization: Bearer", "type": "auth"}}
END = b"data: [DONE]\n\n"


class PageServer(FakeServer):
    """key: what /v1 asks for, if anything."""

    key: str | None = None

    @property
    def origin(self) -> str:
        return self.url.removesuffix("/v1")

    def reset(self) -> None:
        self.requests.clear()
        self.headers.clear()
        self.scripts.clear()
        self.gone.clear()
        self.key = None
        self.models = {"object": "list", "data": [{"id": "served-owl", "object": "model"}]}

    def _whole(self, handler: BaseHTTPRequestHandler, status: int, body: Any) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._send(handler, status, data, "application/json", {"Retry-After": "7"} if status == 429 else {})

    def _get(self, handler: BaseHTTPRequestHandler) -> None:
        if handler.path.startswith("/v1/"):
            if self.key is None or handler.headers["Authorization"] == f"Bearer {self.key}":
                super()._get(handler)
            else:
                self._whole(handler, 401, NO_KEY)
            return
        path = PAGE / (handler.path.lstrip("/") or "index.html")
        data = path.read_bytes() if path.parent == PAGE and path.is_file() else b""
        kind = mimetypes.guess_type(path.name)[0] or "text/plain"
        self._send(handler, 200 if data else 404, data, kind, {"Content-Security-Policy": POLICY})

    def _send(
        self, handler: BaseHTTPRequestHandler, status: int, data: bytes, kind: str, headers: dict[str, str]
    ) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(data)))
        handler.send_header("X-Content-Type-Options", "nosniff")
        handler.end_headers()
        handler.wfile.write(data)


def until(go: threading.Event, before: str, after: str = "") -> Iterator[Any]:
    """An answer that waits in the middle."""
    yield chunk(before)
    assert go.wait(20)
    yield from (chunk(after), chunk("", "stop"), END)


def endless(begin: str) -> Iterator[Any]:
    """An answer for somebody who leaves; comments find out."""
    yield chunk(begin)
    while True:
        yield b": on\n\n"
