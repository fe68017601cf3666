"""A request on its way through the engine: a place in the queue, its pictures, its answers, their reply.

A client that leaves takes its answers with it; what goes wrong before the first byte is a status, afterwards
an event.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from owl_fast.engine.async_stream import AsyncStream
from owl_fast.engine.loop import NONE_ALLOWED
from owl_fast.engine.outputs import Event, Output, joined
from owl_fast.errors import ContextLengthError, ImageError, OwlError, ParameterError, PromptError
from owl_fast.serving.admission import Ticket
from owl_fast.serving.errors import ApiError, internal_error
from owl_fast.serving.replies import COMMENT, DONE, Shape, sse, timings, usage
from owl_fast.serving.schema import ChatRequest, CompletionRequest
from owl_fast.serving.service import Service

POLL = 1.0  # seconds between looks whether a request that waits has started


class Reply(Response):
    """Does what a request asks for and tells the client."""

    def __init__(
        self, service: Service, request: ChatRequest | CompletionRequest, adapter: str, shape: Shape
    ) -> None:
        self._service, self._request, self._adapter, self._shape = service, request, adapter, shape
        self._params = request.params
        self._begun = False  # the reply, that is
        self._unsent = b""
        self._tokens = 0
        self._arrived = self._last = time.monotonic()  # the last token
        self._first = 0.0  # seconds to the first one
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = client_of(scope)
        outcome: str | None = "gone"
        try:
            left = await until_gone(receive, self._answer(client, send))
            outcome = "gone" if left else "answered"
        except ApiError as error:
            outcome = f"refused {error.status}" if self._begun else None
            if outcome is None:
                raise  # who tells the client counts it, too
            self._unsent += sse(error.body)
            await self._flush(send, more=False)
        finally:
            if outcome is not None:
                self._service.metrics.ended(outcome)
                scope.setdefault("state", {})["said"] = self._said(outcome)

    async def _answer(self, client: str, send: Send) -> None:
        admission = self._service.admission
        ticket = admission.enter(client)
        stream: AsyncStream | None = None
        try:
            stream = await self._prepared(ticket, client)
            if self._request.stream:
                await self._tell_in_pieces(stream, ticket, send)
            else:
                await self._tell_whole(stream, ticket, send)
        except ApiError:
            raise
        except Exception as error:
            raise as_api_error(error, self._request.source) from error
        finally:
            if stream is not None:
                stream.cancel()
            admission.leave(ticket)

    async def _prepared(self, ticket: Ticket, client: str) -> AsyncStream:
        """The prompts are read, and counted as waiting."""
        service = self._service
        pictures = await service.pictures(self._request.urls, client)
        stream = service.running.astream(
            self._request.prompts(pictures), self._params, adapter=self._adapter, client=client
        )
        ticket.check()
        positions = await stream.prepare()
        ticket.attend(stream)
        service.admission.count(ticket, positions)
        return stream

    async def _events(self, stream: AsyncStream, ticket: Ticket) -> AsyncIterator[Event | None]:
        """The events; now and then None. ApiError when it takes too long to start, or to say anything."""
        limits = self._service.limits
        until = ticket.arrived + limits.request
        while True:
            now = time.monotonic()
            if now >= until:
                stream.cancel()
            elif not stream.started and now - ticket.arrived >= limits.wait:
                raise self._service.admission.overdue()
            patience = min(limits.comment, max(until - now, POLL)) if stream.started else POLL
            try:
                event = await stream.next(patience)
            except StopAsyncIteration:
                return
            yield event

    async def _tell_whole(self, stream: AsyncStream, ticket: Ticket, send: Send) -> None:
        stream.skip_to_the_ends()
        async for _ in self._events(stream, ticket):
            pass
        outputs = self._outputs(stream)
        self._tokens = usage(outputs)["completion_tokens"]
        if not self._tokens:
            raise self._service.admission.overdue()
        self._first = outputs[0].timings.first_token_ms / 1e3
        self._service.metrics.first_token.observe(self._first)
        self._unsent += self._shape.whole(outputs)
        await self._begin(
            send,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(self._unsent)).encode()),
        )
        await self._flush(send, more=False)

    async def _tell_in_pieces(self, stream: AsyncStream, ticket: Ticket, send: Send) -> None:
        """What is there is sent at once: a slow client gets fewer and larger pieces."""
        async for piece in self._pieces(stream, ticket):
            if not self._begun:
                await self._begin(
                    send,
                    (b"content-type", b"text/event-stream; charset=utf-8"),
                    (b"cache-control", b"no-cache"),
                    (b"x-accel-buffering", b"no"),
                )
            self._unsent += piece
            if not stream.has_events:
                await self._flush(send)
        self._unsent += DONE
        await self._flush(send, more=False)

    async def _pieces(self, stream: AsyncStream, ticket: Ticket) -> AsyncIterator[bytes]:
        """The stream from the moment on when the answers are begun."""
        shape, with_usage = self._shape, self._request.include_usage
        # OpenAI's stream has the field in every chunk once it is asked for.
        nothing = {"usage": None} if with_usage else {}
        left = count = self._request.answers
        opened = False
        async for event in self._events(stream, ticket):
            if event is None and not stream.started:
                continue
            if not opened:
                opened = True
                for index in range(count):
                    if choice := shape.opening(index):
                        yield shape.chunk([choice], **nothing)
            if event is None:
                yield COMMENT
                continue
            self._count(event)
            if piece := shape.piece(event):
                yield shape.chunk([piece], **nothing)
            if event.finish_reason is not None:
                left -= 1
                more = {} if left else {"timings": timings(self._outputs(stream))}
                yield shape.chunk([shape.end(event)], **nothing, **more)
        if with_usage:
            yield shape.chunk([], usage=usage(self._outputs(stream)))

    def _count(self, event: Event) -> None:
        now, metrics = time.monotonic(), self._service.metrics
        if self._tokens:
            metrics.between_tokens.observe(now - self._last)
        elif event.token_ids:
            self._first = now - self._arrived
            metrics.first_token.observe(self._first)
        self._last = now
        self._tokens += len(event.token_ids)

    def _outputs(self, stream: AsyncStream) -> list[Output]:
        """For each prompt the first of its answers, with the others."""
        first, n = stream.output, self._params.n
        answers = [first, *first.others]
        return [joined(answers[start : start + n]) for start in range(0, len(answers), n)]

    async def _begin(self, send: Send, *headers: tuple[bytes, bytes]) -> None:
        self._begun = True
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _flush(self, send: Send, more: bool = True) -> None:
        data, self._unsent = self._unsent, b""
        await send({"type": "http.response.body", "body": data, "more_body": more})

    def _said(self, outcome: str) -> str:
        return (
            f"{outcome}, {self._tokens} tokens, first after {self._first:.3f} s" if self._tokens else outcome
        )


async def until_gone(receive: Receive, work: Coroutine[Any, Any, None]) -> bool:
    """Do the work, unless the client leaves before it is done; returns whether it has left."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        return not task.done()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.wait({task, gone})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def client_of(scope: Scope) -> str:
    """Who asks, for sharing: as the door says, else the address."""
    client = scope.get("state", {}).get("client")
    return client if isinstance(client, str) else f"address {(scope.get('client') or ('?',))[0]}"


def as_api_error(error: Exception, source: str | None = None) -> ApiError:
    """What the client hears of it: the engine's own words where they repeat nothing that came. source: the
    parameter with the prompt."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextLengthError):
        return ApiError(400, str(error), code="context_length_exceeded", param=source)
    if isinstance(error, ImageError):
        return ApiError(400, str(error), code="invalid_image", param=source)
    if isinstance(error, PromptError):
        return ApiError(400, str(error), param=source)
    if isinstance(error, ParameterError):
        return ApiError(400, "a parameter is out of range")
    if isinstance(error, OwlError) and str(error) == NONE_ALLOWED:
        return ApiError(400, "no_repeat_ngram_size and min_tokens forbid every token; loosen them")
    return internal_error(error)
