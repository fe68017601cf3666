"""An engine in this process, as the screen sees it."""

from __future__ import annotations

import os
import time
from typing import Any

from owl_fast.chat.backend import Messages, Reply, Rows
from owl_fast.chat.pictures import MARK
from owl_fast.chat.screen import Screen
from owl_fast.engine.engine import Engine
from owl_fast.engine.sampling import SamplingParams
from owl_fast.errors import UnsupportedError
from owl_fast.prompts import TextPiece, chat_pieces, encode


class LocalBackend:
    def __init__(self, engine: Engine, name: str, seconds: float) -> None:
        """name: of the model, for the user; seconds: what loading took."""
        self.name = name
        self.max_context: int | None = engine.max_context
        self._engine, self._seconds = engine, seconds

    @classmethod
    def load(cls, model: str | None, screen: Screen, **options: Any) -> LocalBackend:
        """Engine.from_pretrained with a bar; options as there, those that are None left out."""
        begin = time.perf_counter()
        given = {name: value for name, value in options.items() if value is not None}
        with screen.progress() as progress:
            engine = Engine.from_pretrained(model, progress=progress, **given)
        name = "owl-nano" if model is None else os.path.basename(os.path.abspath(model))
        return cls(engine, name, time.perf_counter() - begin)

    def ready(self) -> str:
        model = self._engine.model
        dtype = str(model.dtype).removeprefix("torch.")
        weights = sum(parameter.numel() for parameter in model.parameters())
        return (
            f"ready: {self.name} {dtype} · {weights / 1e6:.1f} M weights · {model.device} · "
            f"context {self.max_context} · {self._seconds:.1f} s"
        )

    def check(self, params: SamplingParams) -> None:
        if params.beams > self._engine.max_batch:
            raise UnsupportedError(
                f"beams is {params.beams}, this chat has room for {self._engine.max_batch}; "
                f"start it with --beams {params.beams}"
            )

    def reply(self, messages: Messages, params: SamplingParams, adapter: str | None) -> Reply:
        return self._engine.stream(messages, params)

    def count_tokens(self, messages: Messages) -> int:
        return len(encode(chat_pieces(messages)[0], self._engine.tokenizer, self._engine.config.image_rows))

    def show(self, topic: str, messages: Messages) -> str | Rows:
        if topic == "template":
            pieces = chat_pieces(messages)[0]
            return "".join(piece.text if isinstance(piece, TextPiece) else MARK for piece in pieces)
        raise UnsupportedError(topic)

    def load_adapter(self, name: str, folder: str) -> None:
        raise UnsupportedError(name)

    def adapters(self) -> list[str]:
        return []
