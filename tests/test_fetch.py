"""Fetching pictures: nothing but public hosts that were named, whatever a URL, a name or a server says."""

from __future__ import annotations

import gzip
import ipaddress
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from owl_fast import fetch
from owl_fast.engine.inputs import InputReader
from owl_fast.errors import ImageError, ParameterError
from owl_fast.fetch import FAILED, Fetcher, is_public
from owl_fast.images import ImageProcessor, load_image
from owl_fast.picture_files import MAX_BYTES
from tests.golden_data import image_files

HOST = "pictures.example.org"
PUBLIC = "93.184.215.14"
CERTIFICATE = Path(__file__).parent / "fetch_certificate.pem"
PICTURE = image_files()[0].read_bytes()
URL = f"https://{HOST}/a.png"


class Canary:
    """A listener on the loopback interface that counts who comes."""

    def __init__(self) -> None:
        self.visits = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                if connection.recv(4) == b"quit":
                    return
                self.visits += 1

    def close(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(b"quit")
        self._thread.join()
        self._socket.close()


@pytest.fixture
def canary() -> Iterator[Canary]:
    canary = Canary()
    yield canary
    canary.close()


# --- spellings ---

PRIVATE = (
    *("127.0.0.1", "127.1", "127.0.1", "0", "0.0.0.0", "2130706433", "0x7f000001", "0x7f.0.0.1", "0x7f.1"),
    *("0177.0.0.1", "0177.0.0.01", "017700000001", "127.0.0.1.", "127.000.000.001", "127.255.255.254"),
    *("[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:127.0.0.1]"),
    *("[::127.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]", "[fe80::1%25lo]"),
    *("[fd00::1]", "::1", "localhost", "LOCALHOST", "localhost.", "localhost.localdomain"),
    *("127.0.0.1.nip.io", "ip6-localhost"),
    *("169.254.169.254", "0xa9fea9fe", "2852039166", "metadata", "metadata.google.internal", "192.0.0.192"),
    *("10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "192.0.0.170", "198.18.0.1", "224.0.0.1"),
    *("１２７.0.0.1", "127。0。0。1", "①②⑦.⓪.⓪.①", "loc\u00adalhost", "ⓛocalhost", "127.0.0.1%2e"),
)  # fmt: skip
TRICKS = (
    *(f"https://{HOST}@127.0.0.1/", f"https://{HOST}:443@127.0.0.1/", f"https://a:b@{HOST}/a.png"),
    *(f"https://127.0.0.1\\@{HOST}/", f"https://127.0.0.1#@{HOST}/", f"https://127.0.0.1?@{HOST}/"),
    *(f"https://{HOST}\\.127.0.0.1/", f"https://{HOST}%00.127.0.0.1/", f"https://{HOST}%2f@127.0.0.1/"),
    *("https:///127.0.0.1/", "https:127.0.0.1", "https:/127.0.0.1/", "https:\\\\127.0.0.1\\", "//127.0.0.1/"),
    *(f"HTTPS://{HOST}/", f"https ://{HOST}/", f" https://{HOST}/", f"https://{HOST}/ ", f"\nhttps://{HOST}/"),
    *(f"https://{HOST}/a b", f"https://{HOST}/\r\nX: y", f"https://{HOST}\r\nX: y", f"https://{HOST}/\x00"),
    *(f"https://{HOST}\t/", f"http://{HOST}/", f"https://{HOST}:80/", f"https://{HOST}:8443/"),
    *(f"https://{HOST}:0443/", f"https://{HOST}:/", f"https://{HOST}:443:443/", f"https://.{HOST}/"),
    *(f"https://{HOST}./", f"https://{HOST}../", "https://-a.example.org/", f"https://{'a' * 64}.org/"),
    *("https://a..b.org/", f"https://{'a.' * 200}org/", "https://[pictures].example.org/", "https://*/"),
    *("https:///", "https://", "https://?", "https", "", "http:", "https:", "javascript:alert(1)"),
    *("file:///etc/passwd", "ftp://127.0.0.1/", "gopher://127.0.0.1/", "dict://127.0.0.1:11211/stat"),
    *("https://ｐictures.example.org/", f"https://{HOST}/\N{FULLWIDTH SOLIDUS}", f"https://{HOST}/ä.png"),
    *(f"jar:https://{HOST}!/", f"https://{HOST}/<script>", f'https://{HOST}/"x"', f"https://{HOST}/`id`"),
    *(f"https://{HOST}/{'a' * 3000}", "https://pictures.example.1/", "https://pictures.example.0x7f/"),
    *("https://pictures.example.org,127.0.0.1/", "https://pictures.example.org;127.0.0.1/", "https://a_b/"),
)  # fmt: skip


def spellings(port: int) -> list[str]:
    """URLs that must lead nowhere: a private place in every way to write it, and tricks of parsing."""
    forms = ("https://{}/a.png", "https://{}:443/", "https://{}:{}/a.png", "http://{}:{}/a.png")
    return [form.format(host, port) for host in PRIVATE for form in forms] + list(TRICKS)


def test_no_spelling_reaches_the_loopback(canary: Canary, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = spellings(canary.port)
    assert len(urls) == len(set(urls)) >= 200
    # Any dialling at all would be seen, and every name that gets so far as to be resolved is the loopback's.
    monkeypatch.setattr(fetch, "_connect", lambda a, t: socket.create_connection(("127.0.0.1", canary.port)))
    monkeypatch.setattr(fetch, "_addresses", lambda host: ["127.0.0.1"])
    anywhere, named = Fetcher(["*"]), Fetcher([HOST])
    for url in urls:
        for fetcher in (anywhere, named):
            with pytest.raises(ImageError) as caught:
                fetcher(url)
            assert str(caught.value) == FAILED
    assert canary.visits == 0


def test_no_spelling_gets_past_the_reader_of_pictures(
    canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an engine reads them: what does not look like a URL is a path, and no such file."""
    monkeypatch.setattr(fetch, "_connect", lambda a, t: socket.create_connection(("127.0.0.1", canary.port)))
    monkeypatch.setattr(fetch, "_addresses", lambda host: ["127.0.0.1"])
    reader = InputReader(None, ImageProcessor(16), 65, Fetcher(["*"]))  # type: ignore[arg-type]
    for url in spellings(canary.port):
        with pytest.raises(ImageError):
            reader.pixels([url])
    assert canary.visits == 0


def test_without_hosts_nothing_is_even_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_addresses", lambda host: pytest.fail("resolved"))
    reader = InputReader(None, ImageProcessor(16), 65, Fetcher([]))  # type: ignore[arg-type]
    for url in (URL, "HTTP://x"):
        with pytest.raises(ImageError, match="allow_urls"):
            reader.pixels([url])
    with pytest.raises(ImageError, match="URL"):
        load_image(URL)


# --- addresses ---


@pytest.mark.parametrize(
    ("address", "public"),
    [
        *((text, True) for text in ("8.8.8.8", PUBLIC, "2606:2800:220:1::1", "2001:4860:4860::8888")),
        *((text, True) for text in ("::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1")),
        *((text, False) for text in ("0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "169.254.169.254")),
        *((text, False) for text in ("172.31.255.255", "192.0.0.192", "192.168.1.1", "198.19.0.1")),
        *((text, False) for text in ("192.0.2.1", "203.0.113.9", "224.0.0.1", "240.0.0.1")),
        *((text, False) for text in ("255.255.255.255", "168.63.129.16")),
        *((text, False) for text in ("::", "::1", "::7f00:1", "fc00::1", "fe80::1", "fec0::1", "ff02::1")),
        *((text, False) for text in ("::ffff:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe")),
        *((text, False) for text in ("64:ff9b:1::808:808", "2002:7f00:1::", "2002:c0a8:1::", "2001:db8::1")),
        # Teredo: a private client behind a public server, and the other way round.
        ("2001:0:808:808:0:0:80ff:fffe", False),
        ("2001:0:7f00:1:0:0:f7f7:f7f7", False),
        *((text, False) for text in ("100::1", "2001:10::1", "3fff::1", "4000::1", "5f00::1")),
    ],
)  # fmt: skip
def test_addresses(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


@pytest.mark.parametrize(
    "addresses",
    [(PUBLIC, "127.0.0.1"), ("::1", PUBLIC), ("64:ff9b::7f00:1",), ("fe80::1%eth0",), ()],
    ids=str,
)
def test_one_closed_address_closes_the_name(
    addresses: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "_addresses", lambda host: list(addresses))
    monkeypatch.setattr(fetch, "_connect", lambda a, t: pytest.fail(f"dialled {a}"))
    with pytest.raises(ImageError, match="cannot be fetched"):
        Fetcher([HOST])(URL)


def test_a_name_that_never_resolves_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(fetch, "_addresses", lambda host: release.wait(20) and [])
    monkeypatch.setattr(fetch, "CONNECT_SECONDS", 0.05)
    with pytest.raises(ImageError, match="cannot be fetched"):
        Fetcher([HOST])(URL)
    release.set()


@pytest.mark.parametrize(
    "hosts", [HOST, [5], ["https://a.org"], ["127.0.0.1"], ["a.org:443"], ["localhost"], [""]]
)
def test_hosts_that_are_none(hosts: Any) -> None:
    with pytest.raises(ParameterError, match="hosts of pictures"):
        Fetcher(hosts)


# --- servers ---

Behaviour = Callable[[ssl.SSLSocket, bytes], None]


class Web:
    """The server of HOST, on the loopback interface; `behave` answers each connection."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.behave: Behaviour = lambda channel, request: None
        self.requests: list[bytes] = []
        self.dialled: list[str] = []
        self.resolved: list[str] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        self._context = context
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()
        monkeypatch.setattr(fetch, "_context", lambda: ssl.create_default_context(cafile=str(CERTIFICATE)))
        monkeypatch.setattr(fetch, "_connect", self._connect)
        monkeypatch.setattr(fetch, "_addresses", self._resolve)

    def _resolve(self, host: str) -> list[str]:
        """Public the first time, private from then on."""
        self.resolved.append(host)
        return [PUBLIC if len(self.resolved) == 1 else "127.0.0.1"]

    def _connect(self, address: str, timeout: float) -> socket.socket:
        self.dialled.append(address)
        return socket.create_connection(self._socket.getsockname(), timeout)

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._socket.accept()
            except OSError:
                return
            if plain.recv(4, socket.MSG_PEEK) == b"quit":
                plain.close()
                return
            self._threads.append(threading.Thread(target=self._answer, args=(plain,)))
            self._threads[-1].start()

    def _answer(self, plain: socket.socket) -> None:
        try:
            with self._context.wrap_socket(plain, server_side=True) as channel:
                self.requests.append(channel.recv(4096))
                self.behave(channel, self.requests[-1])
        except OSError:  # the client has left, as it should
            return

    def close(self) -> None:
        with socket.create_connection(self._socket.getsockname()) as connection:
            connection.sendall(b"quit")
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()
        self._socket.close()


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    web = Web(monkeypatch)
    yield web
    web.close()


def reply(body: bytes = PICTURE, status: str = "200 OK", **headers: str) -> Behaviour:
    lines = {"Content-Length": str(len(body))} | {k.replace("_", "-"): v for k, v in headers.items()}
    head = f"HTTP/1.1 {status}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return lambda channel, request: channel.sendall(head.encode() + b"\r\n" + body)


def chunked(channel: ssl.SSLSocket, request: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    channel.sendall(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(PICTURE), PICTURE))


def until_closed(channel: ssl.SSLSocket, request: bytes) -> None:
    channel.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + PICTURE)


@pytest.mark.parametrize("behaviour", [reply(), chunked, until_closed])
@pytest.mark.parametrize("url", [URL, f"https://{HOST.upper()}:443/a.png?x=1&y=%20#part"])
def test_a_picture_is_fetched(web: Web, behaviour: Behaviour, url: str) -> None:
    web.behave = behaviour
    assert Fetcher([HOST.title()])(url) == PICTURE
    # Resolved once, dialled where it was checked: a name that changes its mind changes nothing.
    assert (web.resolved, web.dialled) == ([HOST], [PUBLIC])
    request = web.requests[0].decode()
    assert request.startswith("GET /a.png" + ("?x=1&y=%20 " if "?" in url else " "))
    assert request.lower().count("\r\nhost: ") == 1
    assert f"Host: {HOST}\r\n" in request
    assert "Accept-Encoding: identity\r\n" in request
    assert not any(word in request.lower() for word in ("cookie", "authorization", "referer"))


def test_proxies_of_the_environment_are_not_asked(
    web: Web, canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{canary.port}")
    web.behave = reply()
    assert Fetcher([HOST])(URL) == PICTURE
    assert canary.visits == 0


@pytest.mark.parametrize(
    "status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"]
)
def test_redirects_are_not_followed(web: Web, canary: Canary, status: str) -> None:
    for target in (f"http://127.0.0.1:{canary.port}/", f"https://{HOST}/b.png", "//127.0.0.1/", "/b.png"):
        web.behave, web.resolved = reply(status=status, Location=target), []
        before = len(web.requests)
        with pytest.raises(ImageError, match="cannot be fetched"):
            Fetcher(["*"])(URL)
        assert len(web.requests) == before + 1
    assert canary.visits == 0


def slowly(channel: ssl.SSLSocket, request: bytes) -> None:
    channel.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
    for _ in range(200):
        channel.sendall(b"x")
        time.sleep(0.05)


def slow_header(channel: ssl.SSLSocket, request: bytes) -> None:
    for _ in range(200):
        channel.sendall(b"H")
        time.sleep(0.05)


def silent(channel: ssl.SSLSocket, request: bytes) -> None:
    channel.recv(1)


@pytest.mark.parametrize("behaviour", [slowly, slow_header, silent])
def test_slow_servers_are_left(web: Web, behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "TOTAL_SECONDS", 0.3)
    web.behave = behaviour
    with pytest.raises(ImageError, match="cannot be fetched"):
        Fetcher([HOST])(URL)


def endless(channel: ssl.SSLSocket, request: bytes) -> None:
    channel.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        channel.sendall(bytes(1 << 16))


def bad_chunk(channel: ssl.SSLSocket, request: bytes) -> None:
    channel.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")


def endless_header(channel: ssl.SSLSocket, request: bytes) -> None:
    channel.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        channel.sendall(b"X: y\r\n" * 1000)


def endless_continue(channel: ssl.SSLSocket, request: bytes) -> None:
    while True:
        channel.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)


@pytest.mark.parametrize(
    "behaviour",
    [
        endless,
        endless_header,
        endless_continue,
        reply(Content_Length=str(MAX_BYTES + 1)),
        reply(Content_Length=str(len(PICTURE) + 1)),
        reply(gzip.compress(bytes(1 << 20)), Content_Encoding="gzip"),
        reply(status="404 Not Found"),
        reply(status="206 Partial Content"),
        reply(status="204 No Content"),
        lambda channel, request: None,
        lambda channel, request: channel.sendall(b"\x00\xff" * 100),
        bad_chunk,
    ],
    ids=[
        *("endless", "endless header", "endless continue", "too long", "cut off", "gzip"),
        *("404", "206", "204", "nothing", "noise", "bad chunk"),
    ],
)  # fmt: skip
def test_answers_that_break_a_rule(web: Web, behaviour: Behaviour) -> None:
    web.behave = behaviour
    with pytest.raises(ImageError) as caught:
        Fetcher([HOST])(URL)
    assert str(caught.value) == FAILED


def test_a_certificate_of_another_name_is_refused(web: Web) -> None:
    web.behave = reply()
    with pytest.raises(ImageError, match="cannot be fetched"):
        Fetcher(["other.example.org"])("https://other.example.org/a.png")
    assert web.requests == []


def test_the_log_says_why_and_cannot_be_forged(web: Web, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(ImageError):
        Fetcher([HOST])("https://x.org/\r\nowl_fast: all is well")
    web.behave = reply(status="404 Not Found")
    with pytest.raises(ImageError):
        Fetcher([HOST])(f"{URL}?key=secret")
    assert "status 404" in caplog.text
    assert HOST in caplog.text
    assert "secret" not in caplog.text
    assert all(len(line) < 400 for line in caplog.text.splitlines())
    assert len(caplog.records) == 2
    assert "\nowl_fast" not in caplog.text


def test_an_engine_reads_a_fetched_picture(web: Web) -> None:
    web.behave = reply()
    reader = InputReader(None, ImageProcessor(16), 65, Fetcher([HOST]))  # type: ignore[arg-type]
    (fetched,), (ours,) = reader.pixels([URL]), reader.pixels([PICTURE])
    assert fetched.equal(ours)
