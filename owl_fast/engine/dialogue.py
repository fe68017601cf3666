"""A conversation that remembers itself: Engine.chat gives one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from owl_fast.conversation import Conversation, user_message
from owl_fast.engine.outputs import Output
from owl_fast.engine.sampling import SamplingParams
from owl_fast.engine.stream import Stream
from owl_fast.prompts import Message


class Ask(Protocol):
    """Engine.stream for messages, with what to do at the end of the answer."""

    def __call__(
        self, messages: Sequence[Message], params: SamplingParams, on_end: Callable[[Output], None], /
    ) -> Stream: ...


class Chat:
    """Call it with a text and pictures; it answers with all that was said before in mind.

    history is the list of messages, open to change. A question that fails leaves it as it was.
    """

    def __init__(
        self,
        ask: Ask,
        load: Callable[[object], object],
        conversation: Conversation,
        params: SamplingParams,
    ) -> None:
        """load: makes a picture of what came for one (fetches URLs), once and not at every turn."""
        self._ask, self._load = ask, load
        self._conversation = conversation
        self._params = params

    @property
    def history(self) -> list[dict[str, Any]]:
        return self._conversation.messages

    def __call__(self, text: str, images: Sequence[object] = (), **options: Any) -> Output:
        """The answer to one more message; options are fields of SamplingParams."""
        stream = self.stream(text, images, **options)
        for _ in stream:
            pass
        return stream.output

    def stream(self, text: str, images: Sequence[object] = (), **options: Any) -> Stream:
        """The same answer as it comes. It enters the history when it is read to its end; a cancelled one too,
        as far as it went."""
        message = user_message(text, [self._load(image) for image in images])
        return self._ask(
            [*self.history, message],
            self._params.changed(options),
            lambda output: self._conversation.add(message, output.text),
        )

    def undo(self) -> dict[str, Any] | None:
        """Take back the last question with its answer; returns the question, if there was one."""
        return self._conversation.undo()

    def clear(self) -> None:
        """Forget all but the system message."""
        self._conversation.clear()

    def save(self, path: str | Path, *, embed: bool = False) -> None:
        """Write the history as JSON (owl_fast.conversation); embed: with the pictures that came as paths."""
        self._conversation.save(path, embed=embed)

    def load(self, path: str | Path) -> None:
        """Go on with the history of such a file."""
        self._conversation = Conversation.load(path)
