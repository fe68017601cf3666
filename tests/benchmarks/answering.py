"""A server that says what it is told, to measure: python answering.py ANYTHING ... --port N

What it does is the "case" of a request; without one it answers as many words as are asked for.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORD_SECONDS = 0.001


class Answering(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int = 0, places: int = 1000) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.places, self.running, self.most = places, 0, 0
        self.lock, self.asked = threading.Lock(), list[tuple[str, dict[str, Any]]]()

    def enter(self) -> bool:
        with self.lock:
            if self.running == self.places:
                return False
            self.running += 1
            self.most = max(self.most, self.running)
            return True

    def leave(self) -> None:
        with self.lock:
            self.running -= 1


class Handler(BaseHTTPRequestHandler):
    server: Answering
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._reply(200, {"data": [{"id": "answering"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body))
        if not self.server.enter():
            return self._reply(429, {"error": {"message": "full"}})
        try:
            self._answer(body, body.get("case", ""))
        finally:
            self.server.leave()

    def _answer(self, body: dict[str, Any], case: str) -> None:
        if case in ("429", "500", "503"):
            return self._reply(int(case), {"error": {"message": case}})
        if case == "silent":
            time.sleep(5)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        chat = self.path.endswith("/chat/completions")
        self._say(({"delta": {"role": "assistant"}} if chat else {"text": ""}, None))
        for _ in range(body["max_tokens"]):
            time.sleep(WORD_SECONDS)
            self._say(({"delta": {"content": "wörd "}} if chat else {"text": "wörd "}, None))
        if case == "cut":
            self.close_connection = True
            return self.connection.close()
        if case == "error":
            self._chunk(b'data: {"error": {"message": "broken"}}\n\n')
        else:
            self._say(({"delta": {}} if chat else {"text": ""}, "stop" if case == "short" else "length"))
            self._chunk(b'data: {"choices": [], "usage": {}}\n\n: a comment\n\ndata: [DONE]\n\n')
        self.wfile.write(b"0\r\n\r\n")

    def _say(self, choice: tuple[dict[str, Any], str | None]) -> None:
        """In chunks that know nothing of lines and characters."""
        given = {"choices": [{"index": 0, **choice[0], "finish_reason": choice[1]}]}
        text = f"data: {json.dumps(given, ensure_ascii=False)}\n\n".encode()
        place = text.find("ö".encode()) + 1 or 7
        self._chunk(text[:place])
        self._chunk(text[place:])

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _reply(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


if __name__ == "__main__":
    Answering(int(sys.argv[sys.argv.index("--port") + 1])).serve_forever()
