"""Servers under measurement: each a process of its own, listening on this machine alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

from benchmarks.harness import ROOT
from owl_fast.errors import OwlError

HOST, MODELS = "127.0.0.1", "/v1/models"
STARTS, STOPS = 900.0, 40.0  # seconds it may take: weights are read, requests are ended
LAST_WORDS = 300  # characters of what a server said before it ended


@dataclass(frozen=True)
class Server:
    """model: its name there. extras: fields of a request that others do not need."""

    port: int
    model: str
    extras: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def running(
    command: Sequence[str], extras: Mapping[str, Any] | None = None, ready: str = MODELS
) -> Iterator[Server]:
    """A server that answers; OwlError with its last words when it ends before. `--port` is added.

    ready: the path that tells with status 200 that it may be asked.
    """
    port = _free_port()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        try:
            _wait(process, port, ready, said)
            models = json.loads(_get(port, MODELS))
            yield Server(port, models["data"][0]["id"], extras or {})
        finally:
            _stop(process)


def _wait(process: subprocess.Popen[bytes], port: int, ready: str, said: IO[str]) -> None:
    end = time.monotonic() + STARTS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise OwlError(f"the server ended with code {process.returncode}: {_last_words(said)}")
        try:
            _get(port, ready)
            return
        except OSError:  # nobody listens yet, or a status that is not 200
            time.sleep(0.1)
    raise OwlError(f"the server was not ready after {STARTS:g} s: {_last_words(said)}")


def _get(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=5) as answer:
        return bytes(answer.read())


def _last_words(said: IO[str]) -> str:
    said.seek(0)
    *_, last = said.read().strip().splitlines() or ["it said nothing"]
    return f"{last:.{LAST_WORDS}}"


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOPS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
