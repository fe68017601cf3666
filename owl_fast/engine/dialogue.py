"""A conversation that remembers itself: Engine.chat gives one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from owl_fast.conversation import Conversation, user_message
from owl_fast.engine.inputs import as_list
from owl_fast.engine.loop import Loop
from owl_fast.engine.outputs import Output
from owl_fast.engine.request_maker import RequestMaker, chosen
from owl_fast.engine.sampling import SamplingParams
from owl_fast.engine.stream import Stream
from owl_fast.errors import UnsupportedError


class Chat:
    """Call it with a text and pictures; it answers with all that was said before in mind.

    history is the list of messages, open to change. A question that fails leaves it as it was.
    """

    def __init__(
        self,
        loop: Loop,
        make: RequestMaker,
        conversation: Conversation,
        params: SamplingParams,
        adapter: str | None,
        client: str,
    ) -> None:
        self._loop, self._make = loop, make
        self._conversation = conversation
        self._params, self._adapter, self._client = _of_one_answer(params), adapter, client

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
        params = _of_one_answer(chosen(self._params, options))
        # A URL is fetched here, once, and not at every turn.
        message = user_message(text, [self._make.reader.load(image) for image in as_list(images)])
        asked = [*self.history, message]
        requests = self._make.read(asked, params, None, self._adapter, self._client, {})
        return Stream(self._loop, requests, lambda output: self._conversation.add(message, output.text))

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


def _of_one_answer(params: SamplingParams) -> SamplingParams:
    """UnsupportedError for several."""
    if params.n > 1:
        raise UnsupportedError(
            f"n={params.n} in a conversation, which goes on with one answer; leave n out, or ask generate"
        )
    return params
