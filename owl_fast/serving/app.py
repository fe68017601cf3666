"""The application: its routes, and nothing beside them."""

from __future__ import annotations

import asyncio
import logging
import mimetypes
import re
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Lifespan, Message, Receive, Scope, Send

from owl_fast import prompts
from owl_fast.engine.engine import Engine
from owl_fast.serving import openapi, schema
from owl_fast.serving.answers import Reply, as_api_error, client_of
from owl_fast.serving.errors import ApiError
from owl_fast.serving.json_input import parse
from owl_fast.serving.metrics import CONTENT_TYPE
from owl_fast.serving.replies import ChatShape, CompletionShape
from owl_fast.serving.schema import ChatRequest, CompletionRequest, TokenizeRequest
from owl_fast.serving.service import Service

PAGE = Path(__file__).parent / "page"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")
_MANY = 8  # names of unknown fields in the log

logger = logging.getLogger(__name__)
Endpoint = Callable[[], Coroutine[Any, Any, Response]]
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def make_app(
    service: Service,
    *,
    page: Path = PAGE,
    describe: bool = True,
    measure: bool = True,
    lifespan: Lifespan[FastAPI] | None = None,
) -> FastAPI:
    """page: the folder of the web page; its files lie beside the routes. describe: GET /openapi.json.
    measure: GET /metrics."""
    app = FastAPI(
        title="owl_fast",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json" if describe else None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.router.route_class = _Route
    app.openapi = lambda: openapi.document(app)  # type: ignore[method-assign]
    for kind in (ApiError, HTTPException):
        app.add_exception_handler(kind, partial(_refuse, service))
    app.add_middleware(_Log)
    _add_answers(app, service)
    _add_reports(app, service, measure)
    for path, endpoint in page_endpoints(page).items():
        app.add_api_route(path, endpoint, methods=["GET", "HEAD"], include_in_schema=False)
    return app


def _add_answers(app: FastAPI, service: Service) -> None:
    """The routes that ask something of the model."""

    @app.post("/v1/chat/completions", **openapi.of(ChatRequest, openapi.ChatReply))
    async def chat(request: Request) -> Response:
        asked = await _asked(service, request, ChatRequest)
        adapter, engine = service.adapter(asked.model), service.running
        shape = ChatShape(asked.model, engine.tokenizer, bool(asked.logprobs), asked.begun)
        return Reply(service, asked, adapter, shape)

    @app.post("/v1/completions", **openapi.of(CompletionRequest, openapi.CompletionReply))
    async def complete(request: Request) -> Response:
        asked = await _asked(service, request, CompletionRequest)
        adapter, engine = service.adapter(asked.model), service.running
        shape = CompletionShape(asked.model, engine.tokenizer, asked.logprobs is not None)
        return Reply(service, asked, adapter, shape)

    @app.post("/tokenize", **openapi.of(TokenizeRequest, openapi.Tokens))
    async def tokenize(request: Request) -> Response:
        asked = await _asked(service, request, TokenizeRequest)
        if asked.model is not None:
            service.adapter(asked.model)
        ids = await asyncio.to_thread(_ids, service.running, asked)
        return JSONResponse({"count": len(ids), "max_model_len": service.running.max_context, "tokens": ids})


def _add_reports(app: FastAPI, service: Service, measure: bool) -> None:
    """The routes that say what is here, and how it is."""

    @app.get("/v1/models", **openapi.of(None, openapi.Models))
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": service.models()})

    @app.get("/v1/models/{model}", **openapi.of_model())
    async def model(request: Request) -> Response:
        return JSONResponse(service.model(request.path_params["model"]))

    @app.get("/health", **openapi.of(None, openapi.Status))
    async def health() -> Response:
        service.check_loaded()
        return JSONResponse({"status": "ok"})

    @app.get("/ready", **openapi.of(None, openapi.Status))
    async def ready() -> Response:
        service.check_ready()
        return JSONResponse({"status": "ready"})

    for path, check in {"/health": health, "/ready": ready}.items():
        app.add_api_route(path, check, methods=["HEAD"], include_in_schema=False)

    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    if measure:
        app.add_api_route("/metrics", metrics, include_in_schema=False)


def page_files(folder: Path = PAGE) -> dict[str, Path]:
    """Path in a URL -> file, of the web page."""
    files = sorted(file for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else []
    named = {f"/{file.relative_to(folder).as_posix()}": file for file in files}
    return {"/" if path == "/index.html" else path: file for path, file in named.items()}


def page_endpoints(folder: Path = PAGE) -> dict[str, Endpoint]:
    """Path in a URL -> what answers GET there, of the web page."""
    return {path: _file(file) for path, file in page_files(folder).items()}


def _file(file: Path) -> Endpoint:
    content, kind = file.read_bytes(), mimetypes.guess_type(file.name)[0]

    async def send() -> Response:
        return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

    return send


async def _asked(service: Service, request: Request, kind: type[schema.Asked]) -> schema.Asked:
    """The request in the body; ApiError."""
    service.check_loaded()
    body = await request.body()
    service.admission.check(client_of(request.scope))
    asked = schema.read(kind, parse(body, service.limits))
    if isinstance(asked, schema.Sampling):
        asked.check_ids(service.running.config.llama.vocab_size)
    if unknown := list(asked.model_extra or ()):
        names = [name for name in unknown if _NAME.fullmatch(name)][:_MANY]
        logger.info("%d unknown field(s) ignored: %s", len(unknown), ", ".join(names) or "odd names")
    return asked


def _ids(engine: Engine, asked: TokenizeRequest) -> list[int]:
    """As a prompt has them; a picture's rows are -1."""
    if asked.prompt is not None:
        pieces = prompts.raw_pieces(asked.prompt, engine.config.video)
        schema.check_pictures(sum(isinstance(piece, prompts.ImagePiece) for piece in pieces), "prompt")
    else:
        assert asked.messages is not None, "it has been checked"
        seen = [object()] * schema.LIMITS.images  # which pictures, does not matter
        pieces, _ = prompts.chat_pieces(schema.engine_messages(asked.messages, seen))
    return prompts.encode(pieces, engine.tokenizer, engine.config.image_rows)


class _Route(APIRoute):
    """Whatever goes wrong becomes an ApiError."""

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            try:
                return await handle(request)
            except (ClientDisconnect, HTTPException):
                raise
            except Exception as error:
                raise as_api_error(error) from None

        return guarded


async def _refuse(service: Service, request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        text = {404: "there is nothing at this path", 405: "this path has another method"}
        error = ApiError(error.status_code, text.get(error.status_code, "the request cannot be answered"))
    assert isinstance(error, ApiError)
    if request.method == "POST":
        service.metrics.ended(f"refused {error.status}")
    request.state.said = " ".join(filter(None, (error.code, error.param)))
    return Response(error.content, error.status, error.headers)


class _Log:
    """One line for every request that asks for work: no texts, only counts and times."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        begin, status = time.monotonic(), 499  # the client left

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            route = scope.get("route")
            path = route.path if isinstance(route, APIRoute) else "(no such path)"
            said = scope.get("state", {}).get("said", "")
            logger.info("POST %s %d, %.3f s%s", path, status, time.monotonic() - begin, said and f", {said}")
