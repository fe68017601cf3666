"""What the screen talks to: an engine in this process (local.py) or a server (remote.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from owl_fast.engine.outputs import Event, Output
    from owl_fast.engine.sampling import SamplingParams

Messages = Sequence[Mapping[str, Any]]
Rows = list[tuple[str, str]]


class Reply(Protocol):
    """An answer while it is made; leaving its `with` block frees what it holds."""

    def __enter__(self) -> Reply: ...

    def __exit__(self, *exception: object) -> object: ...

    def __iter__(self) -> Iterator[Event]: ...

    def cancel(self) -> None:
        """End the answer soon and keep what was said. Called from a signal handler."""

    @property
    def output(self) -> Output:
        """The whole answer, once the last event has come."""


class Backend(Protocol):
    """name: of the model, for the user. max_context: positions, None when only a server knows."""

    name: str
    max_context: int | None

    def ready(self) -> str:
        """The line that says what will answer."""

    def check(self, params: SamplingParams) -> None:
        """OwlError for settings that cannot be used here."""

    def reply(self, messages: Messages, params: SamplingParams, adapter: str | None) -> Reply:
        """Begin to answer; when the last message is the assistant's, go on with it."""

    def count_tokens(self, messages: Messages) -> int:
        """Positions of the prompt of these messages."""

    def show(self, topic: str, messages: Messages) -> str | Rows:
        """What is known of a topic: model, template, memory or cache."""

    def load_adapter(self, name: str, folder: str) -> None:
        """Make an adapter known by a name."""

    def adapters(self) -> list[str]:
        """Names of the adapters that are known."""
