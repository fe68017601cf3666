"""The Hugging Face hub on the loopback interface, for huggingface_hub in processes of their own."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


Repositories = Mapping[str, Mapping[str, bytes]]  # id -> name of a file -> what is in it


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


class Handler(http.server.BaseHTTPRequestHandler):
    """The few calls of the hub's interface that a download makes."""

    protocol_version = "HTTP/1.1"
    asked: list[str]
    repositories: Repositories

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.asked.append(path)
        owner, name, *rest = path.removeprefix("/api/models").strip("/").split("/")
        repository = f"{owner}/{name}"
        if repository not in self.repositories:
            self.reply(
                401, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            )
        elif path.startswith("/api/") and rest[0] == "revision":
            siblings = [{"rfilename": name} for name in self.repositories[repository]]
            self.reply(200, json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith("/api/") and rest[0] == "tree":
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in self.repositories[repository].items()
            ]
            self.reply(200, json.dumps(entries).encode())
        else:
            data = self.repositories[repository][rest[-1]]
            etag = f'"{hashlib.sha1(data).hexdigest()}"'
            self.reply(200, data, {"ETag": etag, "X-Repo-Commit": COMMIT})

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


class Hub:
    """environment: what processes need that are to ask it. home: where they keep what they got."""

    def __init__(self, home: Path, repositories: Repositories) -> None:
        self.asked: list[str] = []
        bound = {"asked": self.asked, "repositories": repositories}
        handler = type("BoundHandler", (Handler,), bound)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self.server.serve_forever)
        self._thread.start()
        self.environment = {
            **{name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
            "HF_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}",
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONPATH": str(ROOT),
        }

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()
