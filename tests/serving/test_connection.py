"""How connections behave: real sockets, with times short enough to wait for."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from owl_fast.serving.limits import Limits
from tests.serving.tiny import PATIENT, QUICK, Running, ended, replies, serving, until_end
from tests.serving.waiting import until


@pytest.fixture(scope="module")
def quick() -> Iterator[Running]:
    with serving(QUICK) as running:
        yield running


@pytest.fixture(scope="module")
def patient() -> Iterator[Running]:
    """Ends nothing for being slow: what ends here ends for what it says."""
    with serving(PATIENT) as running:
        yield running


@pytest.fixture(autouse=True)
def unharmed(request: pytest.FixtureRequest) -> Iterator[None]:
    """Afterwards everybody is gone, and a plain request is answered as ever."""
    yield
    for name in {"quick", "patient"} & set(request.fixturenames):
        running: Running = request.getfixturevalue(name)
        running.empty()
        assert running.get().body == b"hello"
        running.empty()


def hello(client: socket.socket) -> None:
    """A reply with the body "hello" on a connection that stays."""
    data = b""
    while not data.endswith(b"hello"):
        piece = client.recv(1 << 16)
        assert piece, data
        data += piece


def handles() -> int:
    return len(os.listdir("/proc/self/fd"))


# Heads.


@pytest.mark.parametrize("begun", [b"G", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Long:"])
def test_half_a_head_is_timed_out(quick: Running, begun: bytes) -> None:
    assert quick.ask(begun).status == 408


def test_silence_is_ended_without_a_word(quick: Running) -> None:
    assert quick.ask_all() == []


def test_a_head_that_drips_is_timed_out(quick: Running) -> None:
    with quick.connect() as client, contextlib.suppress(OSError):
        for byte in quick.head("GET", "/", "X-Long: " + "x" * 10_000):
            client.sendall(bytes([byte]))
            if ended(client):
                break
            time.sleep(0.02)
        else:
            pytest.fail("a head may take as long as it likes")


def test_kept_alive_for_a_while(quick: Running) -> None:
    with quick.connect() as client:
        for _ in range(3):
            client.sendall(quick.head("GET", "/"))
            hello(client)
        assert until_end(client) == b""
    with quick.connect() as client:  # half of another request does not keep it for long
        client.sendall(quick.head("GET", "/"))
        hello(client)
        client.sendall(b"GET /")
        assert replies(until_end(client))[0].status == 408


@pytest.mark.parametrize(
    "lines",
    [
        ("X-Long: " + "x" * 16_400,),
        ("X-Long: " + "x" * 17_000,),
        ("X-Long: " + "x" * 1_000_000,),
        tuple(f"X-{number}: {number}" for number in range(2_000)),
        ("x:",) * 50_000,
    ],
    ids=["barely", "one packet", "a megabyte", "many", "tiny"],
)
def test_heads_have_a_size(patient: Running, lines: tuple[str, ...]) -> None:
    assert patient.ask(patient.head("GET", "/", *lines)).status == 431


def test_the_line_belongs_to_the_head(patient: Running) -> None:
    assert patient.get("/?" + "q" * 16_000).status == 200
    assert patient.get("/?" + "q" * 16_400).status == 431
    assert patient.get("/?" + "q" * 100_000).status == 431
    assert patient.get("/", "X-Long: " + "x" * 16_000).status == 200


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/3.0\r\nHost: x\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
        b"\x00" * 1000 + b"\r\n\r\n",
    ],
)
def test_what_is_no_http(patient: Running, data: bytes) -> None:
    reply = patient.ask(data)
    assert reply.status == 400
    assert json.loads(reply.body)["error"]["type"] == "invalid_request_error"


def test_noise(patient: Running) -> None:
    """Anything but a wait, a traceback or a reply of 500."""
    source = random.Random(1)
    whole = patient.head("POST", "/echo", "Content-Type: application/json", "Content-Length: 9")
    whole += b'{"a": 12}' + patient.head("GET", "/", "Connection: close")
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(source.randint(1, 4)):
            place = source.randrange(len(data))
            data[place : place + source.randint(0, 3)] = source.randbytes(source.randint(0, 3))
        with patient.connect() as client, contextlib.suppress(ConnectionResetError):
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            assert all(reply.status < 500 for reply in replies(until_end(client)))


# Bodies.


def begin_body(server: Running, length: int) -> bytes:
    return server.head("POST", "/echo", "Content-Type: application/json", f"Content-Length: {length}")


def test_half_a_body_is_timed_out(quick: Running) -> None:
    seen = quick.tiny.disconnects
    assert quick.ask(begin_body(quick, 100) + b"x" * 99).status == 408
    until(lambda: quick.tiny.disconnects == seen + 1)


@pytest.mark.parametrize(("piece", "status"), [(4, 408), (400, 200)])
def test_a_body_must_keep_a_rate(quick: Running, piece: int, status: int) -> None:
    """Pieces every 20 ms: 200 bytes a second are too few, 20,000 are enough; 1,024 are asked for."""
    length = 40 * piece
    with quick.connect() as client, contextlib.suppress(OSError):
        client.sendall(begin_body(quick, length))
        for _ in range(40):
            client.sendall(b"x" * piece)
            time.sleep(0.02)
        client.sendall(b"GET")  # half a request more, that the server ends the connection
        found = replies(until_end(client))
    assert found[0].status == status


def test_no_body_takes_for_ever(quick: Running) -> None:
    """Three seconds, at any rate."""
    with quick.connect() as client, contextlib.suppress(OSError):
        client.sendall(begin_body(quick, 200_000))
        for _ in range(400):
            client.sendall(b"x" * 100)
            if ended(client):
                break
            time.sleep(0.02)
        else:
            pytest.fail("a body may take as long as it likes")


def test_waiting_for_the_application_is_not_held_against_the_client(quick: Running) -> None:
    """Longer than both deadlines, in an application that reads late."""
    with quick.connect() as client:
        client.sendall(
            quick.head("POST", "/late", "Content-Type: application/json", "Content-Length: 200000")
        )
        client.sendall(bytes(200_000))
        assert replies(until_end(client))[0].body == bytes(200_000)


@pytest.mark.parametrize(
    "lines",
    [
        *(
            ("Content-Length: -1",),
            ("Content-Length: +5",),
            ("Content-Length: 0x10",),
            ("Content-Length: 5 5",),
        ),
        *(
            ("Content-Length: 5", "Content-Length: 6"),
            ("Content-Length: 5, 6",),
            ("Content-Length: " + "1" * 21,),
        ),
        *(
            ("Transfer-Encoding: gzip",),
            ("Transfer-Encoding: chunked, chunked",),
            ("Transfer-Encoding: xchunked",),
        ),
        *(("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), ("Transfer-Encoding: identity",)),
        *(
            ("Transfer-Encoding: chunked", "Content-Length: 5"),
            ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ),
    ],
)
def test_lengths_that_lie(patient: Running, lines: tuple[str, ...]) -> None:
    seen = len(patient.tiny.clients)
    assert patient.ask(patient.head("POST", "/echo", "Content-Type: application/json", *lines)).status == 400
    assert len(patient.tiny.clients) == seen


def test_chunks_in_an_old_version(patient: Running) -> None:
    head = patient.head("POST", "/echo", "Content-Type: application/json", "Transfer-Encoding: chunked")
    assert patient.ask(head.replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n").status == 400


@pytest.mark.parametrize(
    "chunks",
    [
        *(
            b"zz\r\nab\r\n",
            b"-1\r\na\r\n",
            b"1\r\nab\r\n",
            b"5 x\r\nabcde\r\n",
            b"\r\n\r\n",
            b"0x5\r\nabcde\r\n",
        ),
        *(b"f" * 21 + b"\r\n", b"1;" + b"e" * 40_000, b"1" * 40_000, b"0\r\nX: " + b"t" * 40_000),
        *(b"0\r\nbad trailer\r\n\r\n", b"2\nab\n0\n\n" + b"x" * 40_000),
    ],
    ids=lambda chunks: repr(chunks[:12]),
)
def test_chunks_that_are_none(patient: Running, chunks: bytes) -> None:
    seen = patient.tiny.bodies
    head = patient.head("POST", "/echo", "Content-Type: application/json", "Transfer-Encoding: chunked")
    assert patient.ask(head + chunks).status == 400
    assert patient.tiny.bodies == seen


def test_the_application_hears_of_it_at_once(patient: Running) -> None:
    """Not only when the client ends a connection on which it has been refused."""
    seen = patient.tiny.disconnects
    with patient.connect() as client:
        client.sendall(
            patient.head("POST", "/echo", "Content-Type: application/json", "Transfer-Encoding: chunked")
        )
        until(lambda: patient.tiny.running == 1)
        client.sendall(b"zz\r\n")
        until(lambda: patient.tiny.disconnects == seen + 1)


def test_chunks_that_are_odd(patient: Running) -> None:
    lines = ("Content-Type: application/json", "Transfer-Encoding: CHUNKED", "Connection: close")
    head = patient.head("POST", "/echo", *lines)
    body = b"1;a=b\r\nx\r\n" * 3000 + b"00A\r\n0123456789\r\n0\r\nTrailer: t\r\n\r\n"
    assert patient.ask(head + body).body == b"x" * 3000 + b"0123456789"


def test_more_and_less_than_announced(patient: Running) -> None:
    seen = patient.tiny.disconnects
    with patient.connect() as client:
        client.sendall(begin_body(patient, 100) + b"x" * 50)
        until(lambda: patient.tiny.running == 1)
    until(lambda: patient.tiny.disconnects == seen + 1)
    first, second = patient.ask_all(begin_body(patient, 5) + b"01234" + b"56789\r\n\r\n")
    assert (first.status, first.body, second.status) == (200, b"01234", 400)


def test_an_early_reply_ends_the_body(patient: Running) -> None:
    """200,000 bytes more are sent after the reply; it still arrives whole."""
    head = patient.head("POST", "/early", "Content-Type: application/json", "Content-Length: 250000")
    reply = patient.ask(head, *[bytes(10_000)] * 20)
    assert (reply.status, reply.body) == (200, b"I have heard enough")
    assert reply.header("connection") == "close"


def test_a_client_that_is_asked_to_go_on(patient: Running) -> None:
    with patient.connect() as client:
        lines = (
            "Content-Type: application/json",
            "Content-Length: 5",
            "Expect: 100-continue",
            "Connection: close",
        )
        client.sendall(patient.head("POST", "/echo", *lines))
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 100")
        client.sendall(b"01234")
        assert replies(until_end(client))[0].body == b"01234"


# Pipelines.


def test_requests_in_one_packet_are_answered_in_turn(patient: Running) -> None:
    parts = [begin_body(patient, 4) + b"%04d" % number for number in range(200)]
    found = patient.ask_all(
        b"".join(parts) + patient.head("GET", "/pause", "Connection: close") + b"GET / junk"
    )
    assert [reply.body for reply in found] == [b"%04d" % number for number in range(200)] + [b"hello"]


def test_junk_behind_a_request(patient: Running) -> None:
    first, second = patient.ask_all(patient.head("GET", "/pause") + b"\x00\x01\x02 junk\r\n\r\n")
    assert (first.status, second.status) == (200, 400)


# Readers.


def test_a_reader_that_takes_nothing_is_cut_off(quick: Running) -> None:
    seen = quick.tiny.disconnects
    with quick.connect() as client:
        client.sendall(quick.head("GET", "/endless"))
        until(lambda: quick.tiny.disconnects == seen + 1)
        quick.empty()
        with pytest.raises(ConnectionResetError):
            until_end(client)


def test_a_slow_reader_is_served(quick: Running) -> None:
    """Some is taken in every stretch that would end a reader who takes nothing."""
    taken = 0
    with quick.connect() as client:
        client.sendall(quick.head("GET", "/endless"))
        end = time.monotonic() + 4 * QUICK.stall
        while time.monotonic() < end:
            taken += len(client.recv(4 << 20))
            time.sleep(0.02)
    assert taken > 10 << 20


def test_a_reply_nobody_takes_does_not_keep_the_connection(quick: Running) -> None:
    """Complete for the application, but not sent."""
    with quick.connect() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(quick.head("GET", "/large"))
        quick.empty()


def test_who_leaves_is_noticed(patient: Running) -> None:
    seen = patient.tiny.disconnects
    for _ in range(50):
        with patient.connect() as client:
            client.sendall(patient.head("GET", "/stream"))
            client.recv(1)
        with patient.connect() as client:
            client.sendall(patient.head("GET", "/wait"))
    until(lambda: patient.tiny.disconnects == seen + 100)


# Numbers.


def test_who_waits_longest_makes_room() -> None:
    limits = replace(PATIENT, connections=8)
    with serving(limits) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(8)]
        for client in clients[1:]:
            client.sendall(b"GET / HT")
        until(lambda: len(server.server.server_state.connections) == 8)
        assert server.get().body == b"hello"
        until(lambda: ended(clients[0]))
        assert not any(ended(client) for client in clients[1:])
        for client in clients:
            client.close()
        server.empty()


def test_nobody_is_sent_away_for_a_newcomer_while_being_served() -> None:
    limits = replace(PATIENT, connections=4)
    with serving(limits) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(4)]
        for client in clients:
            client.sendall(server.head("GET", "/wait"))
        until(lambda: server.tiny.running == 4)
        for _ in range(20):
            reply = server.get()
            assert reply.status == 503
            assert reply.header("retry-after") == "1"
            assert json.loads(reply.body)["error"]["type"] == "overloaded_error"
        assert not any(ended(client) for client in clients)
        clients[0].close()
        until(lambda: server.tiny.running == 3)
        assert server.get().body == b"hello"
        for client in clients:
            client.close()
        server.empty()


def crowd(
    limits: Limits, half_open: int, greedy: int, honest: int, rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of honest requests, alone and beside the others, who are all cut off in the end."""
    before = handles()
    with serving(limits) as server:

        def work(into: list[float]) -> None:
            for _ in range(rounds):
                begin = time.monotonic()
                assert server.get("/pause").body == b"hello"
                into.append(time.monotonic() - begin)

        def all_work() -> list[float]:
            seconds: list[float] = []
            threads = [threading.Thread(target=work, args=(seconds,)) for _ in range(honest)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(seconds) == honest * rounds
            return sorted(seconds)

        alone = all_work()
        with contextlib.ExitStack() as stack:
            begin = time.monotonic()
            bad = []
            for number in range(half_open + greedy):
                client = stack.enter_context(server.connect())
                client.sendall(server.head("GET", "/endless") if number < greedy else b"GET / HTTP/1.1\r\nX:")
                bad.append(client)
            beside = all_work()
            server.empty(begin + 35 - time.monotonic())
            assert all(ended(client) for client in bad)
    assert handles() == before
    return alone, beside


def test_a_crowd() -> None:
    limits = replace(QUICK, connections=40)
    crowd(limits, half_open=60, greedy=10, honest=10, rounds=3)


@pytest.mark.slow
def test_a_large_crowd() -> None:
    """At most twice the 99th percentile that honest clients see alone."""
    alone, beside = crowd(Limits(), half_open=300, greedy=50, honest=20, rounds=25)
    assert beside[int(len(beside) * 0.99)] <= 2 * alone[int(len(alone) * 0.99)]
