"""A conversation with a backend, and what waits for its next message."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from owl_fast.chat.answer import show_answer, statistics
from owl_fast.chat.backend import Backend, Messages
from owl_fast.chat.pictures import Attachment, place, unplace
from owl_fast.chat.screen import Screen
from owl_fast.conversation import Conversation
from owl_fast.engine.outputs import Output
from owl_fast.engine.sampling import SamplingParams
from owl_fast.errors import OwlError, PromptError


class Session:
    """Every question shows its answer on the screen. When an answer cannot even begin the conversation stays
    as it was; one that breaks off, by Ctrl-C or an error, is kept as far as it came.

    stream: show answers while they are made.
    """

    def __init__(self, backend: Backend, params: SamplingParams, screen: Screen, stream: bool = True) -> None:
        self.backend, self.params, self.screen, self.stream = backend, params, screen, stream
        self.conversation = Conversation()
        self.queue: list[Attachment] = []
        self.adapter: str | None = None
        self.used: int | None = None  # positions of the context after the last answer

    def ask(self, text: str, again: bool = False) -> Output:
        """The answer to a message with the queued pictures and videos. again: in the place of the last
        message, whose own stay with it."""
        messages, shown = list(self.conversation.messages), [waiting.part() for waiting in self.queue]
        if again:
            index = self._last_question()
            shown = [*unplace(messages[index]["content"])[1], *shown]
            messages = messages[:index]
        content = place(text, shown) if shown else text
        output = self._answer([*messages, {"role": "user", "content": content}])
        self.queue = []
        return output

    def retry(self) -> Output:
        """Another answer to the last message."""
        index = self._last_question()
        return self._answer(self.conversation.messages[: index + 1])

    def go_on(self) -> Output:
        """More of the last answer."""
        messages = self.conversation.messages
        if not messages or messages[-1]["role"] != "assistant":
            raise PromptError("there is no answer to go on with; ask something first")
        return self._answer(messages[:-1], begun=_text(messages[-1]))

    def last_question(self) -> str:
        """The text of the last message, with marks where pictures and videos stand among the words."""
        return unplace(self.conversation.messages[self._last_question()]["content"])[0]

    def prompt(self) -> Messages:
        """The conversation as it would be sent, with what waits and a message without words."""
        content = place("", [waiting.part() for waiting in self.queue]) if self.queue else ""
        return [*self.conversation.messages, {"role": "user", "content": content}]

    def undo(self) -> None:
        """Take back the last message and its answer."""
        self._last_question()
        self.conversation.undo()
        self.used = None

    def clear(self) -> None:
        """Forget the conversation and the queue; the system text stays."""
        self.conversation.clear()
        self.queue, self.used = [], None

    def load(self, path: str) -> str:
        """Go on with a conversation from a file; returns what to say of it."""
        self.conversation, self.used = Conversation.load(path), None
        count = sum(message["role"] == "user" for message in self.conversation.messages)
        return f"loaded {path}: {count} question(s)" + (
            f", the last: {self.last_question():.60}" if count else ""
        )

    def choose_adapter(self, name: str | None) -> None:
        """Use an adapter that is known by this name, or load the folder of this name; None uses none."""
        if name is not None and name not in self.backend.adapters():
            folder = os.path.expanduser(name)
            name = os.path.basename(os.path.abspath(folder))
            if name in self.backend.adapters():  # the same name in another folder
                name = folder
            self.backend.load_adapter(name, folder)
        self.adapter = name

    def _last_question(self) -> int:
        messages = self.conversation.messages
        for index in range(len(messages) - 1, -1, -1):
            if messages[index]["role"] == "user":
                return index
        raise PromptError("nothing has been asked yet")

    def _answer(self, messages: Messages, begun: str = "") -> Output:
        """Answer messages that end with a question; begun: what has been said already."""
        prompt = [*messages, {"role": "assistant", "content": begun}] if begun else messages
        with self.backend.reply(prompt, self.params, self.adapter) as reply:
            output = show_answer(reply, self.screen, self.stream)
        answer = {"role": "assistant", "content": begun + output.text}
        self.conversation.messages = [dict(message) for message in [*messages, answer]]
        self.used = output.usage.total_tokens or None
        if output.error is not None:
            self.screen.error(OwlError(f"{output.error}; what was said is kept, /continue goes on with it"))
        else:
            self.screen.summary(statistics(output, self.backend.max_context))
        return output


def _text(answer: Mapping[str, Any]) -> str:
    content = answer["content"]
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)
