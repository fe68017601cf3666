"""Pictures from the web: the one place that opens a connection for a URL somebody gave.

A URL can point anywhere, also at what only this machine can reach. Hence: https on port 443, a host name of
the allowed ones, never an address; the name is resolved once, every address it has must be a public one,
IPv4 inside IPv6 included, and the connection goes to just those addresses; no redirects, proxies, cookies or
compression; limits on time and size. Every failure looks the same to the caller, so that nobody can learn
from it what listens where; the log has the reason.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import logging
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from owl_fast.errors import ImageError, ParameterError
from owl_fast.picture_files import MAX_BYTES

CONNECT_SECONDS, TOTAL_SECONDS = 3.0, 10.0
MAX_HEADER_BYTES = 64 << 10
MAX_ADDRESSES = 8
ANY_HOST = "*"
FAILED = (
    "the picture cannot be fetched; wanted https://HOST/..., HOST being allowed, that answers directly "
    f"with a picture of at most {MAX_BYTES >> 20} MiB within {TOTAL_SECONDS:.0f} s"
)

logger = logging.getLogger(__name__)

# A name, not an address: the last label begins with a letter, which no spelling of a number does.
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)+[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])")
# One strict grammar instead of a lenient parser: printable ASCII, no user, no other port, no backslash.
_URL = re.compile(r"https://([A-Za-z0-9._-]+)(?::443)?((?:/[!$%&'()*+,./0-9:;=?@A-Z_a-z~-]*)?)(?:#[!-~]*)?")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Beyond what ipaddress calls not global: its tables are older than some of these.
_CLOSED = [
    ipaddress.ip_network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        "168.63.129.16/32",  # looks public, and is the host's own service to a machine on Azure
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15"),
        *("198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        *("2001::/23", "2001:db8::/32", "3fff::/20", "5f00::/16"),
    )
]
_OPEN_V6 = ipaddress.ip_network("2000::/3")  # the only part of IPv6 that is given out to the public
# IPv6 that stands for IPv4: network, and the addresses in its 128 bits.
_EMBEDDING: list[tuple[ipaddress.IPv6Network, Callable[[int], Sequence[int]]]] = [
    (ipaddress.IPv6Network("::ffff:0:0/96"), lambda bits: [bits & 0xFFFFFFFF]),  # mapped
    (ipaddress.IPv6Network("64:ff9b::/96"), lambda bits: [bits & 0xFFFFFFFF]),  # NAT64
    (ipaddress.IPv6Network("2002::/16"), lambda bits: [bits >> 80 & 0xFFFFFFFF]),  # 6to4
    (  # Teredo: the server, and the client with its bits turned
        ipaddress.IPv6Network("2001::/32"),
        lambda bits: [bits >> 64 & 0xFFFFFFFF, ~bits & 0xFFFFFFFF],
    ),
]


class Fetcher:
    """Gets pictures from the hosts it was made for."""

    def __init__(self, hosts: Collection[str]) -> None:
        """hosts: exact names; "*" stands for any public host. ParameterError for what is no host name."""
        if isinstance(hosts, str):
            raise ParameterError(f"hosts of pictures: {hosts!r:.80} is a text; wanted a list of names")
        for host in hosts:
            if not isinstance(host, str) or (host != ANY_HOST and not _HOST.fullmatch(host.lower())):
                raise ParameterError(
                    f"hosts of pictures: {host!r:.80} is no name; wanted such as example.org"
                )
        self.hosts = frozenset(host.lower() for host in hosts)

    def __call__(self, url: str) -> bytes:
        """The body behind the URL, not decoded. ImageError, always the same, when a rule is not met."""
        host = "nowhere"
        try:
            host, target = self._split(url)
            return _fetch(host, target)
        except (OSError, http.client.HTTPException, _Refused, UnicodeError) as error:
            # The rest of the URL is not for the log: it may hold a key.
            logger.info("not fetched from %.100s: %s %.200r", host, type(error).__name__, str(error))
        raise ImageError(FAILED)

    def _split(self, url: str) -> tuple[str, str]:
        """Host and request target of an allowed URL."""
        match = _URL.fullmatch(url) if len(url) <= 2048 else None
        if match is None:
            raise _Refused("not a plain https URL")
        host = match[1].lower()
        if not _HOST.fullmatch(host):
            raise _Refused("not a host name")
        if host not in self.hosts and ANY_HOST not in self.hosts:
            raise _Refused(f"{host} is not allowed")
        return host, match[2] or "/"


class _Refused(Exception):
    """A rule is not met; the text is for the log."""


def is_public(address: Address) -> bool:
    """Whether anybody on the internet could reach it, by the strictest reading."""
    if isinstance(address, ipaddress.IPv6Address):
        for network, embedded in _EMBEDDING:
            if address in network:
                return all(is_public(ipaddress.IPv4Address(bits)) for bits in embedded(int(address)))
        if address not in _OPEN_V6:
            return False
    return address.is_global and not any(address in network for network in _CLOSED)


def _fetch(host: str, target: str) -> bytes:
    deadline = time.monotonic() + TOTAL_SECONDS
    with _dial(_resolve(host), deadline) as plain:
        plain.settimeout(_left(deadline))
        with _context().wrap_socket(plain, server_hostname=host) as channel:
            return _get(channel, host, target, deadline)


def _resolve(host: str) -> list[str]:
    """Every address of the name, in the system's order; _Refused unless all of them are public."""
    found: list[str] = []

    def look_up() -> None:
        try:
            found.extend(_addresses(host))
        except (OSError, UnicodeError) as error:
            logger.info("%.253s: %s", host, error)

    # The system's resolver has no time limit of its own; a thread it keeps ends when it gives up.
    worker = threading.Thread(target=look_up, daemon=True, name="owl_fast-resolve")
    worker.start()
    worker.join(CONNECT_SECONDS)
    addresses = list(found)
    if not addresses:
        raise _Refused("the name has no address")
    for text in addresses:
        if "%" in text or not is_public(ipaddress.ip_address(text)):
            raise _Refused(f"{text} is not public")
    return addresses


def _addresses(host: str) -> list[str]:
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)]


def _dial(addresses: Sequence[str], deadline: float) -> socket.socket:
    """A connection to the first of the checked addresses that answers."""
    until = min(time.monotonic() + CONNECT_SECONDS, deadline)
    for address in addresses[:MAX_ADDRESSES]:
        try:
            return _connect(address, _left(until))
        except OSError as error:
            logger.info("%s: %s", address, error)
    raise _Refused("no address answers")


def _connect(address: str, timeout: float) -> socket.socket:
    return socket.create_connection((address, 443), timeout)


def _context() -> ssl.SSLContext:
    return ssl.create_default_context()


def _get(channel: socket.socket, host: str, target: str, deadline: float) -> bytes:
    """One GET without options; the answer must be a whole 200."""
    request = (
        f"GET {target} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: owl_fast\r\nAccept: image/*\r\n"
        "Accept-Encoding: identity\r\nConnection: close\r\n\r\n"
    )
    channel.settimeout(_left(deadline))
    channel.sendall(request.encode("ascii"))
    response = http.client.HTTPResponse(_Timed(channel, deadline))  # type: ignore[arg-type]
    with response:
        response.begin()
        if response.status != 200:
            raise _Refused(f"status {response.status}")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise _Refused("an encoded body")
        if response.length is not None and response.length > MAX_BYTES:
            raise _Refused(f"{response.length} bytes announced")
        data = response.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES or response.length:
            raise _Refused("too large, or cut off")
        return data


class _Timed(io.RawIOBase):
    """What HTTPResponse reads from: a socket that is over at the deadline, however slowly bytes drip in, and
    that gives no more bytes than a whole answer may have."""

    def __init__(self, channel: socket.socket, deadline: float) -> None:
        self._channel, self._deadline = channel, deadline
        self._allowance = MAX_BYTES + MAX_HEADER_BYTES

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._channel.settimeout(_left(self._deadline))
        count = self._channel.recv_into(buffer)
        self._allowance -= count
        if self._allowance < 0:
            raise _Refused("too large")
        return count


def _left(deadline: float) -> float:
    """Seconds until then; a socket takes 0 for "do not wait", so what is over is an error here."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("over time")
    return left
