"""The door before the application: who may ask, in whose name, how much; and what every reply carries.

A page anywhere on the web can make its visitor's browser send requests to loopback, and a name that resolves
to 127.0.0.1 makes them look like its own. Hence a list of hosts, no foreign origins, a content type no form
can send, and a key on every path that is not named open. Decisions rest on scope["path"] and on the port the
connection came in by, never on what the Host header says these are.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Collection
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from owl_fast.serving.errors import ApiError, internal_error
from owl_fast.serving.limits import Limits

LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")
OPEN_PATHS = frozenset({"/health"})
SECURITY_HEADERS: Final = (
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self'; img-src 'self' data: blob:; "
        b"object-src 'none'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_OURS = {name for name, _ in SECURITY_HEADERS} | {b"server"}
_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::([1-9][0-9]{0,4}))?")
_ORIGIN = re.compile(rb"(https?)://" + _HOST.pattern)
_JSON = re.compile(rb'application/json[ \t]*(?:;[ \t]*(?:charset=(?:"utf-8"|utf-8))?[ \t]*)?', re.IGNORECASE)
_BEARER = re.compile(rb"bearer +([\x21-\x7e]+)", re.IGNORECASE)


class Guard:
    """ASGI middleware around the whole application.

    keys: any of them opens every path; without keys no path needs one. open_paths: need none in any case.
    public_hosts: beside the names of loopback, "NAME" (at the port listened on, or at a proxy's 80 or 443)
    or "NAME:PORT". The application finds in scope["state"]["client"] who asks: a key's number, or an address.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        *,
        keys: Collection[str] = (),
        public_hosts: Collection[str] = (),
        open_paths: Collection[str] = OPEN_PATHS,
    ) -> None:
        """ValueError for a public host that is none."""
        self._app, self._limits = app, limits
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]
        self._public = [_public_host(host) for host in public_hosts]
        self._open = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await _Exchange(scope, receive, send, self._limits).run(self)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application's answer, or the ApiError that says why there is none."""
        headers = _Headers(scope)
        host, port = self._host(scope, headers)
        _check_origin(headers, host, port)
        client = self._client(scope, headers)
        if scope["method"] == "POST":
            _check_content(headers, self._limits)
        scope.setdefault("state", {})["client"] = client
        await self._app(scope, receive, send)

    def _host(self, scope: Scope, headers: _Headers) -> tuple[str, int | None]:
        """Name and port (None: the scheme's) this request was addressed to, which are ours."""
        match = _HOST.fullmatch(headers.one(b"host") or b"")
        if match is None:
            raise ApiError(400, "wanted one Host header with a name and perhaps a port")
        name, port = match[1].decode().lower(), int(match[2]) if match[2] else None
        listening = (scope.get("server") or (None, None))[1]
        if name in LOCAL_HOSTS and (port or 80) == listening:
            return name, port
        for public, public_port in self._public:
            ports = {public_port} if public_port else {None, 80, 443, listening}
            if name == public and port in ports:
                return name, port
        raise ApiError(
            421,
            "this server does not answer under this host name and port; "
            "others are named when it is started: --public-host NAME or NAME:PORT",
            code="unknown_host",
        )

    def _client(self, scope: Scope, headers: _Headers) -> str:
        """Who asks, if they may."""
        if self._digests:
            given = _BEARER.fullmatch(headers.one(b"authorization") or b"")
            digest = hashlib.sha256(given[1]).digest() if given else bytes(32)
            found = [hmac.compare_digest(digest, known) for known in self._digests]
            if any(found):
                return f"key {found.index(True)}"
            if scope["path"] not in self._open:
                raise ApiError(
                    401,
                    "wanted the header 'Authorization: Bearer KEY' with a key of this server",
                    code="invalid_api_key",
                )
        return f"address {(scope.get('client') or ('unknown',))[0]}"


class _Exchange:
    """One request and its reply: counts what comes in, marks what goes out, turns errors into replies."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: Limits) -> None:
        self._scope, self._receive, self._send, self._limits = scope, receive, send, limits
        self._received = 0
        self._held: list[Message] = []
        self._started = False
        self._refused = False  # whatever the application may still say
        self._left = False  # the client, and nobody needs a reply

    async def run(self, guard: Guard) -> None:
        try:
            await guard.admit(self._scope, self.receive, self.send)
            for message in self._held:
                await self._pass(message)
            if not (self._started or self._refused or self._left):
                raise RuntimeError("the application gave no reply")
        except ClientDisconnect:
            pass
        except Exception as error:
            if self._refused:
                return
            if self._started:
                raise  # the server ends the connection, and logs this
            await self._reply(error if isinstance(error, ApiError) else internal_error(error))

    async def receive(self) -> Message:
        if self._refused:
            return {"type": "http.disconnect"}
        message = await self._receive()
        self._left |= message["type"] == "http.disconnect"
        if message["type"] == "http.request":
            self._received += len(message.get("body", b""))
            if self._received > self._limits.body:
                await self._refuse(_too_large(self._limits))
                return {"type": "http.disconnect"}
        return message

    async def send(self, message: Message) -> None:
        """Frameworks answer an exception with a 500 of their own and let it go on to the server: a 500 waits
        here until the application has returned, so that the exception, and not this reply, is answered."""
        if self._refused:
            return
        if self._held or message.get("status") == 500:
            self._held.append(message)
        else:
            await self._pass(message)

    async def _pass(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            kept = [(name, value) for name, value in message.get("headers", ()) if name.lower() not in _OURS]
            message = {**message, "headers": [*kept, *SECURITY_HEADERS]}
        await self._send(message)

    async def _refuse(self, error: ApiError) -> None:
        if not self._started:
            await self._reply(error)
        self._refused = True

    async def _reply(self, error: ApiError) -> None:
        content = error.content
        headers = [(name.encode(), value.encode()) for name, value in error.headers.items()]
        headers.append((b"content-length", str(len(content)).encode()))
        if error.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await self._pass({"type": "http.response.start", "status": error.status, "headers": headers})
        await self._pass({"type": "http.response.body", "body": content})


class _Headers:
    def __init__(self, scope: Scope) -> None:
        self._items: list[tuple[bytes, bytes]] = [(name.lower(), value) for name, value in scope["headers"]]

    def all(self, name: bytes) -> list[bytes]:
        return [value for found, value in self._items if found == name]

    def one(self, name: bytes) -> bytes | None:
        """The header's value; None when it is absent, and when it stands there twice."""
        values = self.all(name)
        return values[0] if len(values) == 1 else None


def _check_origin(headers: _Headers, host: str, port: int | None) -> None:
    """No Origin, or that of a page this very server sent."""
    if not headers.all(b"origin"):
        return
    match = _ORIGIN.fullmatch(headers.one(b"origin") or b"")
    if match is not None:
        default = _DEFAULT_PORTS[match[1].decode()]
        name, own = match[2].decode().lower(), int(match[3] or default)
        if name == host and own == (port or default):
            return
    raise ApiError(403, "requests from pages of other origins are not answered", code="foreign_origin")


def _check_content(headers: _Headers, limits: Limits) -> None:
    """JSON, uncompressed, and no longer than allowed as far as it says."""
    if not _JSON.fullmatch(headers.one(b"content-type") or b""):
        raise ApiError(415, "wanted one header 'Content-Type: application/json' (UTF-8)")
    if any(value.lower() != b"identity" for value in headers.all(b"content-encoding")):
        raise ApiError(415, "wanted a body without Content-Encoding")
    for length in headers.all(b"content-length"):
        if not re.fullmatch(rb"[0-9]{1,20}", length):
            raise ApiError(400, "wanted a Content-Length that is a number")
        if int(length) > limits.body:
            raise _too_large(limits)


def _too_large(limits: Limits) -> ApiError:
    return ApiError(413, f"the body is larger than {limits.body} bytes", code="body_too_large")


def _public_host(text: str) -> tuple[str, int | None]:
    match = _HOST.fullmatch(text.encode(errors="replace"))
    if match is None:
        raise ValueError(f"public host {text!r:.100} cannot be read; wanted NAME or NAME:PORT")
    return match[1].decode().lower(), int(match[2]) if match[2] else None
