"""How the server starts and ends: a process of its own, with clients on it."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from owl_fast.serving.server import run
from tests.serving.tiny import QUICK, replies, serving, until_end

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def program(drain: float) -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = [sys.executable, "-m", "tests.serving.tiny", str(drain)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def request(port: int, path: str) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=20)
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
    return client


def ends_in_order(process: subprocess.Popen[str]) -> None:
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors) == (0, "ended in order\n", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_at_once(number: signal.Signals) -> None:
    with program(drain=60) as (process, port), socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(20)
        process.send_signal(number)
        assert until_end(client) == b""
        ends_in_order(process)


def test_what_is_under_way_is_finished() -> None:
    with program(drain=60) as (process, port), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(request(port, path)) for path in ("/stream", *["/pause"] * 5)]
        assert clients[0].recv(1) == b"H"
        half = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
        half.sendall(b"GET / HT")
        process.send_signal(signal.SIGTERM)
        assert until_end(half) == b""
        for client in clients[1:]:
            (reply,) = replies(until_end(client))
            assert reply.body == b"hello"
        with pytest.raises(OSError, match="refused"):
            request(port, "/")
        assert process.poll() is None
        clients[0].close()
        ends_in_order(process)


def under_load(seed: int) -> None:
    """No stream ends without an event; whoever comes too late is refused, and nobody waits."""
    source = random.Random(seed)
    with program(drain=0.3) as (process, port):
        streams = [request(port, "/stream") for _ in range(10)]
        begun = [stream.recv(1) for stream in streams]
        assert begun == [b"H"] * 10
        stop = threading.Event()

        def hammer() -> None:
            while not stop.is_set():
                with contextlib.suppress(OSError), request(port, "/pause") as client:
                    until_end(client)

        threads = [threading.Thread(target=hammer) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(source.random() * 0.5)
        process.send_signal(signal.SIGTERM)
        for stream in streams:
            data = until_end(stream)
            assert data.endswith(b"event: error\n\n\r\n0\r\n\r\n")
            stream.close()
        ends_in_order(process)
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("seed", range(2))
def test_the_end_under_load(seed: int) -> None:
    under_load(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 22))
def test_the_end_under_load_again(seed: int) -> None:
    under_load(seed)


def test_a_second_signal_ends_at_once() -> None:
    """Although a stream runs and an application takes no cancellation."""
    with program(drain=60) as (process, port):
        clients = [request(port, path) for path in ("/stream", "/stuck")]
        assert clients[0].recv(1) == b"H"
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        for client in clients:
            client.close()


def test_an_application_that_never_ends_keeps_nobody() -> None:
    with program(drain=0.1) as (process, port):
        client = request(port, "/stuck")
        process.send_signal(signal.SIGTERM)
        assert until_end(client) == b""
        client.close()


def test_a_failing_start_says_so() -> None:
    async def app(scope: object, receive: object, send: object) -> None:
        raise LookupError("no model")

    told: list[int] = []
    assert run(app, "127.0.0.1", 0, QUICK, started=lambda host, port: told.append(port)) == 3
    assert told == []


def test_a_taken_address_is_an_error() -> None:
    with serving(QUICK) as quick, pytest.raises(OSError, match="in use"):
        run(quick.tiny, "127.0.0.1", quick.port, QUICK)
