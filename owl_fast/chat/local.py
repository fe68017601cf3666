"""An engine in this process, as the screen sees it."""

from __future__ import annotations

import time
from typing import Any

from owl_fast import machine, native
from owl_fast.chat.backend import Messages, Reply, Rows
from owl_fast.chat.screen import Screen
from owl_fast.engine.engine import Engine
from owl_fast.engine.placement import weight_count
from owl_fast.engine.sampling import SamplingParams
from owl_fast.errors import ParameterError, UnsupportedError
from owl_fast.prompts import IMAGE_TEXT, Piece, TextPiece, chat_pieces, encode
from owl_fast.summary import config_rows, model_name, plan_text, said_precision, size_text


class LocalBackend:
    def __init__(self, engine: Engine, name: str, seconds: float) -> None:
        """name: of the model, for the user; seconds: what loading took."""
        self.name = name
        self.max_context: int | None = engine.max_context
        self._engine, self._seconds = engine, seconds

    @classmethod
    def load(cls, model: str | None, screen: Screen, **options: Any) -> LocalBackend:
        """Engine.from_pretrained with a bar; options as there."""
        begin = time.perf_counter()
        with screen.progress() as progress:
            engine = Engine.from_pretrained(model, progress=progress, **options)
        if engine.model.device.type == "cpu":
            native.library()  # says now, and not in the middle of an answer, when it is missing
        return cls(engine, model_name(model), time.perf_counter() - begin)

    def ready(self) -> str:
        return f"ready: {plan_text(self.name, self._engine, self._seconds)}"

    def check(self, params: SamplingParams) -> None:
        if params.beams > self._engine.max_batch:
            raise UnsupportedError(
                f"beams is {params.beams}, this chat has room for {self._engine.max_batch}; "
                f"start it with --beams {params.beams}"
            )

    def reply(self, messages: Messages, params: SamplingParams, adapter: str | None) -> Reply:
        return self._engine.stream(messages, params, adapter=adapter)

    def count_tokens(self, messages: Messages) -> int:
        return len(encode(self._pieces(messages), self._engine.tokenizer, self._engine.config.image_rows))

    def show(self, topic: str, messages: Messages) -> str | Rows:
        if topic == "template":
            pieces = self._pieces(messages)
            return "".join(piece.text if isinstance(piece, TextPiece) else IMAGE_TEXT for piece in pieces)
        rows = {"model": self._model_rows, "memory": self._memory_rows, "cache": self._cache_rows}
        if topic not in rows:
            raise ParameterError(f"nothing is known of {topic!r:.40}; wanted template, {', '.join(rows)}")
        return rows[topic]()

    def load_adapter(self, name: str, folder: str) -> None:
        self._engine.load_adapter(name, folder)

    def adapters(self) -> list[str]:
        return list(self._engine.adapters)

    def _pieces(self, messages: Messages) -> list[Piece]:
        return chat_pieces(messages, videos=self._engine.config.video)[0]

    @property
    def _held(self) -> str:
        model = self._engine.model
        return said_precision(model.dtype, model.config.quantization)

    def _model_rows(self) -> Rows:
        model = self._engine.model
        count, device = weight_count(model.config), machine.device_name(model.device)
        return [
            ("name", self.name),
            ("weights", f"{count / 1e6:.1f} M, {self._held}, on {device}"),
            *config_rows(self._engine.config),
            ("context", f"{self.max_context} positions"),
        ]

    def _memory_rows(self) -> Rows:
        memory, device = self._engine.memory(), self._engine.model.device
        total = machine.device_memory(device)
        rows = {
            "weights": memory.weights,
            "adapters": memory.adapters,
            "cache": memory.cache,
            "pictures seen before": memory.pictures,
            "work space (estimate)": memory.activations,
            "together": memory.total,
            f"of {machine.device_name(device)}": total,
        }
        return [(name, size_text(size)) for name, size in rows.items()]

    def _cache_rows(self) -> Rows:
        stats = self._engine.stats()
        return [
            ("size", size_text(self._engine.memory().cache)),
            ("room", f"{self.max_context} positions in each of {self._engine.max_batch} row(s)"),
            (
                "prompts so far",
                f"{stats.usage.prompt_tokens} positions, {stats.usage.image_tokens} of pictures",
            ),
            ("of these reused", f"{stats.usage.cached_tokens}"),
            ("answers so far", f"{stats.answered + stats.cancelled}, {stats.usage.completion_tokens} tokens"),
        ]
