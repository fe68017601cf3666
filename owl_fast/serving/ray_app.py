"""The server on several GPUs or machines: replicas of the same application on Ray Serve.

    pip install -c constraints.txt '.[ray,serve]'
    serve run owl_fast.serving.ray_app:build model=DIR quant=int4 replicas=2 gpus=1

listens on 127.0.0.1:8000, as `python -m owl_fast.serve` does; `serve start --http-host` and a key in
OWL_API_KEY open it to others. A request goes through Ray's proxy to the front, which checks who asks, has it
wait for its turn as the server would, and picks a replica: for a request about a picture the one that has
seen it, else the one with the least to do. A replica that dies or whose model stops is replaced; the front
asks another one for what it had not begun to answer. The page, and how the replicas are, never waits.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve import Application
from ray.serve.config import RequestRouterConfig
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from owl_fast.errors import ParameterError
from owl_fast.fetch import Fetcher
from owl_fast.serving.admission import Admission, Ticket
from owl_fast.serving.answers import client_of
from owl_fast.serving.app import Endpoint, make_app, page_endpoints, page_files
from owl_fast.serving.errors import ApiError, loading
from owl_fast.serving.guard import OPEN_PATHS, Guard
from owl_fast.serving.heartbeat import Heartbeat, leave
from owl_fast.serving.limits import Limits
from owl_fast.serving.metrics import CONTENT_TYPE, merged
from owl_fast.serving.options import environment_keys, read_adapters, read_list
from owl_fast.serving.replies import sse
from owl_fast.serving.service import Service

REPLICAS = "replicas"  # of the application, the deployment's name
TRIES = 3  # replicas that are asked when they die before they answer
SPARE = 2  # requests at a replica beyond its batch, so that none of its rows waits for the front
ASIDE = 16  # places of a replica beyond those of requests: how it is, is asked while it is full, too
# What the application may know of a request; the rest of it is the proxy's own.
PASSED = (
    *("type", "asgi", "http_version", "method", "scheme", "path", "raw_path"),
    *("query_string", "root_path", "headers", "client", "server", "state"),
)
# Arguments of build() that are not the engine's, with what they are when they are not given.
DEPLOYED: Mapping[str, Any] = {
    **{"replicas": 1, "cpus": 1.0, "gpus": 0.0, "name": "", "public_hosts": ""},
    **{"adapters": "", "image_hosts": "", "image_dir": ""},
}
ENGINE: Mapping[str, type] = {
    **dict.fromkeys(
        ("model", "device", "dtype", "quant", "quant_vision", "vision", "kv_cache", "adapter"), str
    ),
    **dict.fromkeys(("max_context", "max_batch", "cache_positions", "picture_cache_mb", "speculation"), int),
}
_PICTURE = re.compile(rb'"url"\s*:\s*"([^"\\]+)"')  # within a text a quotation mark has a backslash before it


def picture_of(body: bytes) -> str:
    """A name for the first picture of a request, which stays in place while its conversation goes on; "" when
    there is none. Nothing else is read of the request here."""
    found = _PICTURE.search(body)
    return hashlib.blake2b(found[1], digest_size=16).hexdigest() if found else ""


class Roomy(RunningReplica):  # type: ignore[misc]
    """A replica as requests see it: with ASIDE places less than it has."""

    @property
    def max_ongoing_requests(self) -> int:
        return int(super().max_ongoing_requests) - ASIDE


class PictureRouter(RequestRouter):  # type: ignore[misc]
    """Requests with one session id, the picture's name, prefer one replica while it has room; the others go
    where the least is to do."""

    def create_replica_wrapper(self, replica_info: Any) -> Roomy:
        return Roomy(replica_info)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        if not (picture := pending_request.metadata.session_id):
            return [candidate_replicas]
        first, *others = sorted(candidate_replicas, key=lambda replica: _rank(picture, replica))
        return [[first], others]


def _rank(picture: str, replica: RunningReplica) -> bytes:
    """Rendezvous hashing: when a replica goes, only its own pictures move."""
    return hashlib.blake2b(f"{picture} {replica.replica_id.unique_id}".encode(), digest_size=8).digest()


class Replica:
    """The application around an engine of its own."""

    def __init__(self, model: str | None, name: str, options: Mapping[str, Any]) -> None:
        """As Service.load."""
        self._service = Service()
        self._engine = self._service.load(model, name, **options)
        self._app = make_app(self._service, describe=False)
        self._watching: asyncio.Task[None] | None = None

    async def ask(self, scope: Scope, body: bytes) -> AsyncIterator[list[Message]]:
        """Nothing, as a sign that the request is here; then what the application says to it, as it says it.
        Who stops listening cancels the answer."""
        given: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        said: asyncio.Queue[Message | None] = asyncio.Queue()

        async def receive() -> Message:
            if not given:
                await asyncio.Event().wait()
            return given.pop()

        task = asyncio.create_task(self._app(scope, receive, said.put))
        task.add_done_callback(lambda _: said.put_nowait(None))
        try:
            yield []
            while messages := await _next(said):
                yield messages
            await task
        finally:
            task.cancel()

    async def check_health(self) -> None:
        """Ray replaces the replica when this goes on failing; a model that has stopped ends it before."""
        if self._watching is None:  # before this there was no event loop
            self._watching = asyncio.create_task(Heartbeat(self._service, leave).watch())
        try:
            self._service.check_ready()
        except ApiError as error:
            raise RuntimeError(error.message) from None  # an ApiError does not travel between processes

    def is_ready(self) -> bool:
        try:
            self._service.check_ready()
        except ApiError:
            return False
        return True

    def models(self) -> list[dict[str, Any]]:
        return self._service.models()

    def metrics(self) -> tuple[str, bytes]:
        """The name of the replica, and its metrics."""
        return serve.get_replica_context().replica_id.unique_id, self._service.metrics.text()

    def stats(self) -> dict[str, Any]:
        """What the engine has done so far (engine/reports.py), and in which process."""
        return {"process": os.getpid(), **asdict(self._engine.stats())}

    def __del__(self) -> None:
        self._service.close()


async def _next(said: asyncio.Queue[Message | None]) -> list[Message]:
    """All messages that are there, at least one; none at the end."""
    messages = []
    while (message := await said.get()) is not None:
        messages.append(message)
        if said.empty():
            break
    else:
        said.put_nowait(None)  # for the next call
    return messages


class Front:
    """ASGI application that has others answer."""

    def __init__(self, replicas: DeploymentHandle, only_local: bool, limits: Limits | None = None) -> None:
        """only_local: nobody from another machine is answered."""
        self._replicas, self._only_local, self._limits = replicas, only_local, limits or Limits()
        self._admission = Admission(self._limits)
        self._told: dict[str, asyncio.Task[list[Any]]] = {}  # what the replicas are being asked
        self._own: dict[str, Endpoint] = {  # GET and HEAD
            **page_endpoints(),
            "/health": self._health,
            "/ready": self._ready,
            "/v1/models": self._models,
            "/metrics": self._metrics,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._only_local and not _is_local(scope):
            raise ApiError(403, "without a key (OWL_API_KEY) this server answers its own machine alone")
        if scope["method"] in ("GET", "HEAD") and (own := self._own.get(scope["path"])):
            await (await own())(scope, receive, send)
            return
        body = await _body(receive)
        ticket = self._admission.enter(client_of(scope))
        try:
            await self._pass_on(ticket, {name: scope[name] for name in PASSED if name in scope}, body, send)
        finally:
            self._admission.leave(ticket)

    async def _pass_on(self, ticket: Ticket, scope: Scope, body: bytes, send: Send) -> None:
        """Whoever leaves while it waits, is cancelled here by Ray."""
        replicas = self._replicas.options(method_name="ask", stream=True, session_id=picture_of(body))
        for _ in range(TRIES):
            reply, call = _Reply(send), _Call(replicas.remote(scope, body))
            try:
                ticket.attend(call)
                await reply.pass_on(await call.taken(self._limits.wait))
                async for messages in call.messages:
                    await reply.pass_on(messages)
                return
            except asyncio.TimeoutError:
                raise self._admission.overdue() from None
            except RayActorError:
                if reply.begun:
                    await reply.break_off()
                    return
            finally:
                call.cancel()
        raise ApiError(503, "replicas ended before they answered; try again", retry_after=1)

    async def _health(self) -> Response:
        await self._answers("is_ready")
        return JSONResponse({"status": "ok"})

    async def _ready(self) -> Response:
        if not any(await self._answers("is_ready")):
            raise ApiError(503, "nothing has been heard of any replica's model for a while", code="not_ready")
        return JSONResponse({"status": "ready"})

    async def _models(self) -> Response:
        first, *_ = await self._answers("models")
        return JSONResponse({"object": "list", "data": first})

    async def _metrics(self) -> Response:
        return Response(merged(dict(await self._answers("metrics"))), media_type=CONTENT_TYPE)

    async def _answers(self, method: str) -> list[Any]:
        """Of all replicas that answer, at least one; ApiError. Many who want to know, ask once."""
        if method not in self._told:
            self._told[method] = asyncio.create_task(self._ask_all(method))
            self._told[method].add_done_callback(lambda _: self._told.pop(method))
        told = await asyncio.shield(self._told[method])
        if not told:
            raise loading()
        answers = [one for one in told if not isinstance(one, BaseException)]
        if not answers:
            raise ApiError(503, "no replica answers; try again soon", code="not_ready", retry_after=2)
        return answers

    async def _ask_all(self, method: str) -> list[Any]:
        """What each replica says, or how it failed; results_async has nothing when one is silent."""
        asked, patience = self._replicas.broadcast(method), self._limits.heartbeat
        try:
            return await asyncio.to_thread(asked.results, timeout_s=patience, return_exceptions=True)
        except (DeploymentUnavailableError, TimeoutError):  # there is none, or none is known yet
            return []


class _Call:
    """A request to the replicas, which waits until one of them takes it (see admission.Answering)."""

    def __init__(self, messages: DeploymentResponseGenerator) -> None:
        self.messages = messages
        self._first = asyncio.ensure_future(anext(messages))
        self._error: Exception | None = None

    @property
    def started(self) -> bool:
        return self._first.done()

    def fail(self, error: Exception, /) -> None:
        self._error = error
        self._first.cancel()

    async def taken(self, patience: float) -> list[Message]:
        """The first that is said; what it failed with, asyncio.TimeoutError."""
        try:
            return await asyncio.wait_for(self._first, patience)
        except asyncio.CancelledError:
            if self._error is None:
                raise
            raise self._error from None

    def cancel(self) -> None:
        """No replica needs to go on with it; nothing happens when it is over."""
        self._first.cancel()
        self.messages.cancel()


class _Reply:
    def __init__(self, send: Send) -> None:
        self._send, self.begun, self._is_stream = send, False, False

    async def pass_on(self, messages: list[Message]) -> None:
        for message in messages:
            if message["type"] == "http.response.start":
                kind = dict(message["headers"]).get(b"content-type", b"")
                self.begun, self._is_stream = True, kind.startswith(b"text/event-stream")
            await self._send(message)

    async def break_off(self) -> None:
        """The replica is lost: a stream ends with an event, anything else without its end."""
        error = ApiError(503, "the replica that answered has ended; ask again", code="replica_lost")
        if not self._is_stream:
            raise error
        await self._send({"type": "http.response.body", "body": sse(error.body)})


def build(args: dict[str, Any]) -> Application:
    """What `serve run` and Ray Serve's configuration files deploy.

    args, as texts or numbers: replicas, and cpus and gpus of each; name, of the model to clients; with commas
    between them: public_hosts, names beside those of loopback, adapters, as NAME=DIR, and image_hosts;
    image_dir; model, device, dtype, quant, quant_vision, vision, kv_cache, adapter, max_context,
    max_batch, cache_positions, picture_cache_mb, speculation of Engine.from_pretrained. ParameterError: an
    argument that is none of these, a key that is none.
    """
    limits, settings, options = Limits(), *_settings(args)
    environment_keys()  # those of the front are in its own environment
    places = options.get("max_batch", 8) + SPARE
    replicas = serve.deployment(Replica).options(
        name=REPLICAS,
        num_replicas=settings["replicas"],
        ray_actor_options={"num_cpus": settings["cpus"], "num_gpus": settings["gpus"]},
        max_ongoing_requests=places + ASIDE,
        request_router_config=RequestRouterConfig(request_router_class=PictureRouter),
        health_check_period_s=limits.heartbeat,
        health_check_timeout_s=limits.frozen,
        graceful_shutdown_timeout_s=limits.drain,
    )

    def front() -> ASGIApp:
        handle = serve.get_deployment_handle(REPLICAS, serve.get_replica_context().app_name)
        keys, hosts = environment_keys(), read_list(settings["public_hosts"])
        app = Router(default=Front(handle, not keys, limits), redirect_slashes=False)
        opened = OPEN_PATHS | page_files().keys()
        return Guard(app, limits, keys=keys, public_hosts=hosts, open_paths=opened)

    served = serve.deployment(serve.ingress(front)()).options(
        name="front",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=limits.connections + settings["replicas"] * places,
        max_queued_requests=limits.connections,
        graceful_shutdown_timeout_s=limits.drain,
    )
    model = options.pop("model", None)
    options |= {
        "adapters": read_adapters(read_list(settings["adapters"])),
        "hosts": Fetcher(read_list(settings["image_hosts"])).hosts,
        "image_dir": settings["image_dir"] or None,
    }
    return served.bind(replicas.bind(model, settings["name"] or Path(model or "owl-nano").name, options))


def _settings(args: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The deployment's, all of them, and the engine's that were given."""
    known = {**{name: type(value) for name, value in DEPLOYED.items()}, **ENGINE}
    if unknown := sorted(args.keys() - known.keys()):
        raise ParameterError(f"{unknown[0]} is no argument; wanted some of {', '.join(known)}")
    try:
        read = {name: known[name](value) for name, value in args.items()}
    except ValueError as error:
        raise ParameterError(f"an argument cannot be read: {error}") from None
    deployed = {name: read.get(name, value) for name, value in DEPLOYED.items()}
    return deployed, {name: read[name] for name in ENGINE if name in read}


async def _body(receive: Receive) -> bytes:
    parts = []
    while (message := await receive())["type"] == "http.request":
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)
    raise ClientDisconnect


def _is_local(scope: Scope) -> bool:
    client = (scope.get("client") or ("",))[0]
    try:
        return ip_address(client).is_loopback
    except ValueError:
        return False
