"""A backend whose answers are written down beforehand, a keyboard likewise, and a screen to look at."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from owl_fast.chat.backend import Messages, Rows
from owl_fast.chat.screen import Screen
from owl_fast.engine.outputs import Event, Output, Timings, Usage
from owl_fast.engine.sampling import SamplingParams
from owl_fast.errors import OwlError, UnsupportedError


class FakeReply:
    """Says the pieces; an exception among them is raised in its turn, a callable called."""

    def __init__(self, pieces: Iterable[Any]) -> None:
        self._pieces, self._said, self._cancelled = deque(pieces), "", False

    def __enter__(self) -> FakeReply:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def __iter__(self) -> Iterator[Event]:
        while self._pieces and not self._cancelled:
            piece = self._pieces.popleft()
            if callable(piece):
                piece()
            elif isinstance(piece, BaseException):
                raise piece
            else:
                self._said += piece
                yield Event(piece)

    def cancel(self) -> None:
        self._cancelled = True

    @property
    def output(self) -> Output:
        reason = "cancelled" if self._cancelled else "stop"
        return Output(self._said, [], [], reason, Usage(10, 2), Timings(prompt_ms=5.0, predicted_n=2))


class FakeBackend:
    """Answers with the scripts in their order; keeps what it was asked."""

    name = "fake"
    max_context: int | None = 100

    def __init__(self, *scripts: Sequence[Any] | OwlError) -> None:
        self.scripts = deque(scripts)
        self.asked: list[tuple[Messages, SamplingParams, str | None]] = []
        self.folders: dict[str, str] = {}

    def ready(self) -> str:
        return "ready: fake"

    def check(self, params: SamplingParams) -> None:
        if params.beams > 1:
            raise UnsupportedError("one beam only")

    def reply(self, messages: Messages, params: SamplingParams, adapter: str | None) -> FakeReply:
        self.asked.append((messages, params, adapter))
        script = self.scripts.popleft() if self.scripts else ["yes"]
        if isinstance(script, OwlError):
            raise script
        return FakeReply(script)

    def count_tokens(self, messages: Messages) -> int:
        return 7 * len(messages)

    def show(self, topic: str, messages: Messages) -> str | Rows:
        return [("topic", topic), ("messages", str(len(messages)))]

    def load_adapter(self, name: str, folder: str) -> None:
        self.folders[name] = folder

    def adapters(self) -> list[str]:
        return list(self.folders)


class FakeReader:
    """Gives these entries; exception types are raised. Then Ctrl-D."""

    def __init__(self, *entries: str | type[BaseException]) -> None:
        self.entries = deque(entries)
        self.drafts: list[str] = []

    def read(self, draft: str = "") -> str:
        self.drafts.append(draft)
        entry = self.entries.popleft() if self.entries else EOFError
        if isinstance(entry, str):
            return entry
        raise entry


class FakeScreen(Screen):
    def __init__(self) -> None:
        super().__init__()
        self.answers: list[str] = [""]
        self.notes: list[str] = []
        self.errors: list[str] = []

    def answer(self, text: str) -> None:
        self.answers[-1] += text

    def end_answer(self) -> None:
        self.answers.append("")

    def note(self, text: str) -> None:
        self.notes.append(text)

    def error(self, error: OwlError) -> None:
        self.errors.append(str(error))


def clip(path: Path) -> Path:
    """An animation of six frames."""
    frames = [Image.new("RGB", (10, 8), (40 * i, 0, 0)) for i in range(6)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    return path
