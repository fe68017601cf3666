"""Who may ask: every check against a real server, which answers a plain request as ever afterwards."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from owl_fast.serving.guard import Guard
from owl_fast.serving.limits import Limits
from tests.serving.tiny import PATIENT, QUICK, Reply, Running, serving
from tests.serving.waiting import until

KEY, OTHER_KEY = "correct-horse-battery-staple", "another-key-of-this-server"
PAGE = ("/", "/style.css", "/health")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(PATIENT, public_hosts=["Owl.example", "lan.example:9000", "[2001:db8::1]"]) as running:
        yield running


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    with serving(PATIENT, keys=[KEY, OTHER_KEY], open_paths=PAGE) as running:
        yield running


@pytest.fixture(autouse=True)
def unharmed(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "server" in request.fixturenames:
        running: Running = request.getfixturevalue("server")
        assert running.get().body == b"hello"
        running.empty()


def error(reply: Reply, status: int) -> dict[str, Any]:
    """The error of a reply, which has every field and is short."""
    assert reply.status == status, reply
    assert reply.header("content-type") == "application/json"
    assert len(reply.body) <= Limits().error
    found: dict[str, Any] = json.loads(reply.body)["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


def ask(server: Running, *lines: str) -> Reply:
    text = "\r\n".join(["GET / HTTP/1.1", *lines, "Connection: close", "", ""])
    return server.ask(
        text.replace("PORT1", str(server.port + 1)).replace("PORT", str(server.port)).encode("latin-1")
    )


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1:PORT", "localhost:PORT", "LocalHost:PORT", "[::1]:PORT"),
        *("owl.example", "OWL.example:443", "owl.example:80", "owl.example:PORT"),
        *("lan.example:9000", "[2001:DB8::1]:PORT"),
    ],
)
def test_hosts_that_are_ours(server: Running, host: str) -> None:
    assert ask(server, f"Host: {host}").status == 200


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "localhost:PORT1", "localhost:80", "localhost.:PORT"),
        *(
            "evil.example:PORT",
            "127.0.0.1.evil.example:PORT",
            "evil-localhost:PORT",
            "localhost.evil.example",
        ),
        *("0.0.0.0:PORT", "127.1:PORT", "127.0.0.2:PORT", "2130706433:PORT", "0x7f.1:PORT"),
        *("[::]:PORT", "[::ffff:127.0.0.1]:PORT", "[0:0:0:0:0:0:0:1]:PORT"),
        *("owl.example:81", "owl.example:PORT1", "www.owl.example", "owl.example.", "xowl.example"),
        *("lan.example", "lan.example:9001", "lan.example:PORT"),
    ],
)
def test_other_hosts_are_misdirected(server: Running, host: str) -> None:
    found = error(ask(server, f"Host: {host}"), 421)
    assert found["code"] == "unknown_host"
    assert "--public-host" in found["message"]
    assert host not in found["message"]


@pytest.mark.parametrize(
    "host",
    [
        *("", "localhost:", ":PORT", "localhost:PORT:PORT", "localhost PORT", "me@localhost:PORT"),
        *("localhost:PORT,evil.example", "http://localhost:PORT", "localhost:PORT/", "localhost:0PORT"),
        *("localhost:+PORT", "localhost:999999", "local\xe9host:PORT", "[::1", "::1", "[::1%lo]:PORT"),
        *("localhost:PORT?", "localhost\\:PORT", "a" * 300),
    ],
)
def test_what_is_no_host(server: Running, host: str) -> None:
    error(ask(server, f"Host: {host}"), 400)


def test_no_host_and_two(server: Running) -> None:
    error(ask(server), 400)
    error(ask(server, "Host: localhost:PORT", "Host: localhost:PORT"), 400)
    error(ask(server, "Host: localhost:PORT", "Host: evil.example"), 400)
    error(server.ask(b"GET / HTTP/1.0\r\n\r\n"), 400)
    assert server.ask(f"GET / HTTP/1.0\r\nHost: localhost:{server.port}\r\n\r\n".encode()).status == 200
    # What a target or another header calls the host changes nothing.
    assert server.get("http://evil.example/", "X-Forwarded-Host: evil.example").status == 200
    error(ask(server, "Host: evil.example", f"X-Forwarded-Host: localhost:{server.port}"), 421)


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:PORT", "http://localhost:PORT"),
        ("LOCALHOST:PORT", "http://localhost:PORT"),
        ("[::1]:PORT", "http://[::1]:PORT"),
        ("owl.example", "https://owl.example"),
        ("owl.example:443", "https://owl.example"),
        ("owl.example", "https://owl.example:443"),
        ("owl.example:80", "http://owl.example"),
    ],
)
def test_own_origins(server: Running, host: str, origin: str) -> None:
    assert ask(server, f"Host: {host}", f"Origin: {origin}").status == 200


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        *(
            ("localhost:PORT", origin)
            for origin in (
                *("null", "", "NULL", "*", "localhost:PORT", "//localhost:PORT", "http://localhost:PORT/"),
                *(
                    "http://localhost",
                    "http://localhost:PORT1",
                    "http://127.0.0.1:PORT",
                    "ftp://localhost:PORT",
                ),
                *("http://evil.example", "http://localhost.evil.example:PORT", "file://", "http://"),
                *(
                    "http://localhost:PORT.evil.example",
                    "http://localhost:PORT@evil.example",
                    "app://localhost:PORT",
                ),
                *(
                    "http://me@localhost:PORT",
                    "http://localhost:PORT, null",
                    "http://localhost:PORT http://x",
                ),
                *("http://loc\xe4lhost:PORT", "chrome-extension://abcdefgh"),
            )
        ),
        ("owl.example", "https://owl.example:8443"),
        ("owl.example:443", "http://owl.example"),
        ("owl.example:80", "https://owl.example"),
        ("owl.example", "https://evil.example"),
    ],
)
def test_foreign_origins(server: Running, host: str, origin: str) -> None:
    assert error(ask(server, f"Host: {host}", f"Origin: {origin}"), 403)["code"] == "foreign_origin"


def test_two_origins_and_the_browser_questions(server: Running) -> None:
    own = f"Origin: http://127.0.0.1:{server.port}"
    error(server.get("/", own, own), 403)
    error(server.get("/", own, "Origin: null"), 403)
    preflight = ("Origin: http://evil.example", "Access-Control-Request-Method: POST")
    reply = server.ask(server.head("OPTIONS", "/", *preflight, "Connection: close"))
    error(reply, 403)
    assert not any(name.lower().startswith("access-control") for name, _ in reply.headers)


@pytest.mark.parametrize(
    "kind",
    [
        *("application/json", "APPLICATION/JSON", "application/json; charset=utf-8", "application/json;"),
        *('application/json ; charset="UTF-8"', "application/json;charset=UTF-8 "),
    ],
)
def test_json_is_taken(server: Running, kind: str) -> None:
    head = server.head("POST", "/echo", f"Content-Type: {kind}", "Content-Length: 2", "Connection: close")
    assert server.ask(head + b"{}").body == b"{}"


@pytest.mark.parametrize(
    "lines",
    [
        (),
        *(
            (f"Content-Type: {kind}",)
            for kind in (
                *("", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a"),
                *(
                    "application/jsonx",
                    "xapplication/json",
                    "text/plain; application/json",
                    "application/json+x",
                ),
                *("application/json; charset=utf-16", "application/json; charset=utf-8; charset=utf-7"),
                *("application/json, text/plain", "application/json; boundary=x", "application/jso\xf1"),
            )
        ),
        ("Content-Type: application/json", "Content-Type: application/json"),
        ("Content-Type: application/json", "Content-Encoding: gzip"),
    ],
)
def test_no_form_can_post(server: Running, lines: tuple[str, ...]) -> None:
    error(
        server.ask(server.head("POST", "/echo", *lines, "Content-Length: 2", "Connection: close") + b"{}"),
        415,
    )


def test_bodies_up_to_the_limit(server: Running) -> None:
    whole, seen = b"x" * QUICK.body, server.tiny.bodies
    assert server.post("/echo", whole).body == whole
    assert server.tiny.bodies == seen + 1
    assert error(server.post("/echo", whole + b"x"), 413)["code"] == "body_too_large"
    error(server.post("/early", whole + b"x"), 413)
    assert server.tiny.bodies == seen + 1


def test_a_long_body_is_refused_before_it_is_sent(server: Running) -> None:
    for length in ("1000000000", "9" * 20):
        lines = ("Content-Type: application/json", f"Content-Length: {length}", "Expect: 100-continue")
        error(server.ask(server.head("POST", "/echo", *lines)), 413)


def test_a_body_without_a_length_is_counted(server: Running) -> None:
    chunk = b"8000\r\n" + bytes(0x8000) + b"\r\n"
    head = server.head("POST", "/echo", "Content-Type: application/json", "Transfer-Encoding: chunked")
    seen = server.tiny.disconnects
    # Eight fill the limit; the client sends 30 times more and still reads what it is told.
    error(server.ask(head + chunk * 8, *[chunk] * 240), 413)
    until(lambda: server.tiny.disconnects == seen + 1)
    whole = head.replace(b"Host", b"Connection: close\r\nHost") + chunk * 8
    assert len(server.ask(whole + b"0\r\n\r\n").body) == QUICK.body
    error(server.ask(whole + b"1\r\nx\r\n0\r\n\r\n"), 413)


ABUSES = {
    "none": (),
    "empty": ("Authorization:",),
    "scheme only": ("Authorization: Bearer",),
    "no scheme": (f"Authorization: {KEY}",),
    "other scheme": (f"Authorization: Basic {KEY}",),
    "wrong": ("Authorization: Bearer wrong",),
    "prefix": (f"Authorization: Bearer {KEY[:-1]}",),
    "longer": (f"Authorization: Bearer {KEY}x",),
    "case": (f"Authorization: Bearer {KEY.upper()}",),
    "quoted": (f'Authorization: Bearer "{KEY}"',),
    "two words": (f"Authorization: Bearer {KEY} {KEY}",),
    "list": (f"Authorization: Bearer {KEY}, Bearer {KEY}",),
    "latin": ("Authorization: Bearer \xe9\xff\x80",),
    "long": ("Authorization: Bearer " + "k" * 12_000,),
    "two good": (f"Authorization: Bearer {KEY}", f"Authorization: Bearer {KEY}"),
    "good and bad": (f"Authorization: Bearer {KEY}", "Authorization: Bearer wrong"),
    "elsewhere": (f"X-API-Key: {KEY}", f"Cookie: key={KEY}", f"Proxy-Authorization: Bearer {KEY}"),
    "claims": ("X-Forwarded-For: 127.0.0.1", "X-Original-URL: /health", "X-HTTP-Method-Override: GET"),
}
CLOSED = ("/echo", "/v1/models", "/metrics", "/nowhere", "//", "/health/", "//health", "/health/../echo")
CLOSED += (
    "/%2e",
    "/HEALTH",
    "/health%00",
    "/health;x",
    "/echo?/health",
    "/style.css/",
    "http://x/health",
    "*",
)


@pytest.mark.parametrize("abuse", ABUSES)
def test_no_way_without_a_key(locked: Running, abuse: str) -> None:
    """One text for all of them, whatever the path."""
    texts = set()
    ran = len(locked.tiny.clients)
    for path in CLOSED:
        reply = locked.get(path, *ABUSES[abuse])
        texts.add(error(reply, 401)["message"])
        assert reply.header("www-authenticate") == "Bearer"
        for open_path in PAGE:
            assert locked.get(open_path, *ABUSES[abuse]).status == 200
        ran += len(PAGE)
    error(locked.post("/echo", b"{}", *ABUSES[abuse]), 401)
    assert len(texts) == 1
    assert not any(KEY in text for text in texts)
    assert len(locked.tiny.clients) == ran  # the application never heard of the others


def test_a_megabyte_of_authorization(locked: Running) -> None:
    error(locked.get("/echo", "Authorization: Bearer " + "k" * (1 << 20)), 431)


def test_keys_open(locked: Running) -> None:
    for line in (f"Bearer {KEY}", f"bearer {KEY}", f"BEARER  {KEY}"):
        assert locked.post("/echo", b"{}", f"Authorization: {line}").body == b"{}"
        assert locked.tiny.clients[-1] == "key 0"
    assert locked.post("/echo", b"{}", f"Authorization: Bearer {OTHER_KEY}").status == 200
    assert locked.tiny.clients[-1] == "key 1"
    assert locked.get("/he%61lth", "Authorization: Bearer wrong").status == 200  # this is /health
    assert locked.tiny.clients[-1] == "address 127.0.0.1"


def test_a_refusal_before_the_body_is_read(locked: Running) -> None:
    """The connection cannot be used again, and is not reset while the client still sends."""
    head = locked.head("POST", "/echo", "Content-Type: application/json", "Content-Length: 250000")
    reply = locked.ask(head, *[bytes(50_000)] * 5)
    error(reply, 401)
    assert reply.header("connection") == "close"
    locked.empty()


def test_without_keys_nobody_needs_one(server: Running) -> None:
    assert server.get("/echo", "Authorization: Bearer anything").status == 200


def test_order_says_little_to_strangers(locked: Running) -> None:
    """Host and origin first, then the key; only who has one hears about types and sizes."""
    error(ask(locked, "Host: evil.example"), 421)
    error(locked.get("/echo", "Origin: null"), 403)
    error(locked.ask(locked.head("POST", "/echo", "Content-Length: 99999999")), 401)


def test_an_exception_becomes_an_error_with_a_number(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    for path in ("/raise", "/framework", "/nothing"):
        caplog.clear()
        found = error(server.get(path), 500)
        assert found["type"] == "server_error"
        assert "path" not in found["message"]
        (record,) = caplog.records
        number = record.getMessage().removeprefix("error ")
        assert number in found["message"]
        assert len(number) == 12
        assert record.exc_info
    assert server.get("/own-500").body == b"on purpose"


def test_an_exception_in_a_reply_ends_the_connection(server: Running) -> None:
    with server.connect() as client:
        client.sendall(server.head("GET", "/raise-late"))
        data = b""
        while piece := client.recv(1 << 16):
            data += piece
    assert data.endswith(b"begun\r\n")  # no last chunk: the client can tell


def test_the_application_refuses(server: Running) -> None:
    reply = server.get("/busy")
    assert error(reply, 429)["type"] == "rate_limit_error"
    assert reply.header("retry-after") == "7"


def test_no_web_sockets(server: Running) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Guard(server.tiny, QUICK)({"type": "websocket", "path": "/"}, None, send))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]
    upgrade = ("Upgrade: websocket", "Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 13")
    reply = server.ask(server.head("GET", "/", *upgrade, "Connection: Upgrade, close"))
    assert (reply.status, reply.body) == (200, b"hello")  # HTTP allows to go on without


@pytest.mark.parametrize(
    "host", ["", "a b", "http://owl.example", "owl.example/", "owl.example:", "*", "owl:0"]
)
def test_public_hosts_must_be_hosts(host: str) -> None:
    with pytest.raises(ValueError, match="NAME or NAME:PORT"):
        Guard(None, QUICK, public_hosts=[host])  # type: ignore[arg-type]
