"""The two requests a chat makes of a server: read some JSON, and post JSON to read an event stream.

http.client and nothing above it: no redirects (a key must not follow one), no proxies, no cookies.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from owl_fast.errors import DataError, OwlError, ParameterError

CONNECT_SECONDS = 10.0
# Between two bytes: a server may compute a long prompt, or wait for its turn, without a word.
SILENCE_SECONDS = 600.0
MAX_REPLY_BYTES = 1 << 20
REFUSED = (400, 413, 422)  # too long for its context, say
MAX_EVENT_BYTES = 1 << 20
MAX_STREAM_BYTES = 1 << 29  # a MiB of letters, each in an event of its own


class ServerError(OwlError):
    """The server cannot be reached, refuses, or breaks off."""


class RefusedError(ServerError):
    """It will not have this request, and may have others."""


class Server:
    """An address ending in what comes before /chat/completions, and the key it wants, if any."""

    def __init__(self, url: str, key: str | None = None) -> None:
        """ParameterError for what is no http or https address."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ParameterError(f"url {url!r:.200} cannot be read; wanted http://HOST:PORT/v1") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ParameterError(f"url {url!r:.200}: wanted http://HOST:PORT/v1 or https://HOST/v1")
        if parts.username is not None or not re.fullmatch(r"[!-~]*", url):
            raise ParameterError(f"url of {parts.hostname:.100}: a user, space or non-ASCII letter is in it")
        self.url = url.rstrip("/")
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, port
        self._path = parts.path.rstrip("/")
        self._headers = {"User-Agent": "owl_fast", "Accept": "application/json, text/event-stream"}
        if key is not None:
            if not re.fullmatch(r"[!-~]+", key):
                raise ParameterError("the API key is empty or has letters no header can carry")
            self._headers["Authorization"] = f"Bearer {key}"

    def get(self, path: str) -> Any:
        """The JSON behind a path; ServerError."""
        with self._request("GET", path, None) as exchange:
            try:
                return json.loads(exchange.start().read(MAX_REPLY_BYTES))
            except (OSError, http.client.HTTPException, ValueError, RecursionError):
                raise ServerError(f"{self.url}{path} is no JSON; wanted an address ending in /v1") from None

    def post(self, path: str, body: Mapping[str, Any]) -> Exchange:
        """Send JSON; the reply is read from the exchange."""
        return self._request("POST", path, json.dumps(body).encode("ascii"))

    def _request(self, method: str, path: str, body: bytes | None) -> Exchange:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=CONNECT_SECONDS)
        headers = {**self._headers, **({} if body is None else {"Content-Type": "application/json"})}
        try:
            connection.connect()
            connection.sock.settimeout(SILENCE_SECONDS)
            connection.request(method, self._path + path, body, headers)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise ServerError(f"{self.url} cannot be reached ({_reason(error)})") from None
        except BaseException:
            connection.close()
            raise
        return Exchange(self.url, connection)


def api_key(file: str | None) -> str | None:
    """The key in a file, else the environment's OWL_API_KEY; DataError."""
    if file is None:
        return os.environ.get("OWL_API_KEY")
    try:
        with open(file, encoding="ascii") as opened:
            return opened.read(4096).strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not plain text"
        raise DataError(f"{file}: cannot be read ({reason})") from None


class Exchange:
    """A request that was sent and its reply."""

    def __init__(self, url: str, connection: http.client.HTTPConnection) -> None:
        self._url, self._connection = url, connection
        # Kept, because the connection lets go of it when the server announces to close.
        self._socket: socket.socket = connection.sock
        self._response: http.client.HTTPResponse | None = None
        self._aborted = False

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._response is not None:
            self._response.close()
        self._connection.close()

    def abort(self) -> None:
        """Whoever reads the reply finds its end, whatever has come already. Safe in a signal handler."""
        self._aborted = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def start(self) -> http.client.HTTPResponse:
        """Wait for the reply; ServerError with the server's own words unless it is a 200."""
        try:
            self._response = self._connection.getresponse()
            if self._response.status == 200:
                return self._response
            said = _message(self._response.read(MAX_REPLY_BYTES))
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"{self._url} does not answer ({_reason(error)})") from None
        status = self._response.status
        hint = f"; did you mean {self._url}/v1?" if status == 404 and not urlsplit(self._url).path else ""
        kind = RefusedError if status in REFUSED else ServerError
        raise kind(f"{self._url} says {status}: {said or self._response.reason}{hint}")

    def events(self) -> Iterator[str]:
        """The data of each event until the stream ends; ServerError when it breaks off in a bad way, or goes
        on without end."""
        response = self.start()
        if response.headers.get_content_type() != "text/event-stream":
            raise ServerError(f"{self._url} sends no event stream; is it an OpenAI-compatible server?")
        data: list[str] = []
        event = stream = 0  # bytes
        while not self._aborted:
            try:
                line = response.readline(MAX_EVENT_BYTES + 1)
            except (OSError, http.client.HTTPException) as error:
                raise ServerError(f"{self._url} broke off ({_reason(error)})") from None
            event, stream = event + len(line), stream + len(line)
            if event > MAX_EVENT_BYTES or stream > MAX_STREAM_BYTES:
                raise ServerError(f"{self._url} sends without end; given up after {stream} bytes")
            text = line.decode("utf-8", "replace").rstrip("\r\n")
            if text.startswith("data:"):
                data.append(text[5:].removeprefix(" "))
            elif not text:
                if data:
                    yield "\n".join(data)
                data, event = [], 0
            if not line:
                return


def _message(body: bytes) -> str:
    """The message of an OpenAI-style error; of anything else its first line."""
    text = body.decode("utf-8", "replace").strip()
    try:
        error = json.loads(text)["error"]
        text = error["message"] if isinstance(error, dict) else error
    except (ValueError, KeyError, TypeError, RecursionError):
        text = "" if text.startswith("<") else text.partition("\n")[0]
    return str(text)[:1000]


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no word in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
