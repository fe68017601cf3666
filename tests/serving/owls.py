"""A real server in a thread, with owl-nano behind the door, and clients for it."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from owl_fast.engine.engine import Engine
from owl_fast.serving.app import make_app
from owl_fast.serving.guard import Guard
from owl_fast.serving.limits import Limits
from owl_fast.serving.media import Media
from owl_fast.serving.server import Server
from owl_fast.serving.service import Service
from tests.serving.running import running
from tests.serving.waiting import PATIENCE, until

ROOT = Path(__file__).parents[2]
SCENE = ROOT / "examples/scene.png"
MODEL = "owl-nano"
QUESTION = "What color is the star?"
FIXED = {"model": MODEL, "temperature": 0, "max_tokens": 24}


@functools.cache
def nano() -> Engine:
    """One for all tests that leave it as it was."""
    return Engine.from_pretrained(device="cpu", dtype="fp32", max_batch=4)


def data_uri(file: Path = SCENE) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def asking(text: str = QUESTION, *pictures: str) -> list[ChatCompletionMessageParam]:
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def seen(text: str = QUESTION) -> list[ChatCompletionMessageParam]:
    """A question about the picture."""
    return asking(text, data_uri())


@dataclasses.dataclass
class Owls:
    service: Service
    server: Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.address[1]}"

    @property
    def engine(self) -> Engine:
        assert self.service.engine is not None
        return self.service.engine

    def openai(self, **options: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE, **options)

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=PATIENCE, trust_env=False, **options)

    def held_blocks(self) -> int:
        stats = self.engine.stats()
        return stats.blocks - stats.blocks_free

    def idle(self) -> None:
        """Wait until nothing is under way and nothing is held."""
        until(
            lambda: (
                not self.service.admission.tickets
                and not self.server.server_state.tasks  # the line in the log comes last
                and self.held_blocks() == 0
                and not {"owl_fast-steps", "owl_fast-read"} & {one.name for one in threading.enumerate()}
            )
        )

    def empty(self) -> None:
        """The same, and nobody is connected."""
        until(lambda: not self.server.server_state.connections)
        self.idle()

    def fixed_answer(self) -> tuple[str, list[float]]:
        """What a fixed prompt is answered, to the bit."""
        with self.openai() as client:
            reply = client.chat.completions.create(messages=seen(), logprobs=True, top_logprobs=3, **FIXED)
        (choice,) = reply.choices
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert choice.message.content == "The star is red."
        return choice.message.content, [entry.logprob for entry in choice.logprobs.content]


@contextlib.contextmanager
def serving(
    engine: Engine | None = None,
    limits: Limits | None = None,
    *,
    loaded: bool = True,
    lifespan: Callable[[Service], Any] | None = None,
    **guard: Any,
) -> Iterator[Owls]:
    service = Service(limits)
    media = None
    if loaded:
        engine = engine or nano()
        media = Media(engine.processor, service.limits, workers=1)
        service.open(engine, MODEL, media)
    app = make_app(service, lifespan=lifespan(service) if lifespan else None)
    try:
        with running(Guard(app, service.limits, **guard), service.limits, service.say_goodbye) as server:
            yield Owls(service, server)
    finally:
        if media is not None:
            media.close()


def handles() -> int:
    return len(os.listdir("/proc/self/fd"))


def events(text: str) -> Iterator[str]:
    """The data of each event of a stream; comments are none."""
    for block in text.split("\n\n"):
        if block.startswith("data: "):
            yield block.removeprefix("data: ")
