"""Several turns: read an entry, carry it out, until the user leaves."""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from owl_fast.chat import commands
from owl_fast.chat.entry import block
from owl_fast.chat.screen import Screen
from owl_fast.chat.session import Session
from owl_fast.chat.terminal import quiet_keys
from owl_fast.errors import OwlError


class Reader(Protocol):
    def read(self, draft: str = "") -> str:
        """The next entry; EOFError for Ctrl-D, KeyboardInterrupt for Ctrl-C at an empty prompt."""


class Talk:
    """The state of the loop beside the conversation: a message that is being changed."""

    def __init__(self, session: Session, screen: Screen) -> None:
        self.session, self.screen = session, screen
        self._draft: str | None = None

    def run(self, reader: Reader) -> int:
        """Until the user leaves; the exit code."""
        leaving = False
        while True:
            draft, self._draft = self._draft, None
            try:
                entry = reader.read(draft or "")
            except EOFError:
                return 0
            except KeyboardInterrupt:
                if leaving:
                    return 0
                leaving = draft is None
                self.screen.note("Ctrl-C once more leaves." if leaving else "The message stays as it was.")
                continue
            leaving = False
            try:
                with quiet_keys():
                    self._take(entry, editing=draft is not None)
            except OwlError as error:
                self.screen.error(error)
            except KeyboardInterrupt:
                self.screen.note("stopped; nothing has changed")
            except commands.Leave:
                return 0

    def edit(self, text: str) -> None:
        """Let the next entry begin with this text and replace the last message."""
        self._draft = f'"""{text}"""' if text.startswith("/") else text

    def status(self) -> str:
        """What the line under the input says."""
        session = self.session
        parts = [session.backend.name]
        if session.adapter is not None:
            parts.append(f"adapter {session.adapter}")
        if session.used is not None:
            limit = "" if session.backend.max_context is None else f"/{session.backend.max_context}"
            parts.append(f"context {session.used}{limit}")
        for kind, number in Counter(waiting.kind for waiting in session.queue).items():
            parts.append(f"{number} {kind}(s) waiting")
        return " · ".join([*parts, "/help"])

    def _take(self, entry: str, editing: bool) -> None:
        quoted = block(entry)
        if quoted:
            self.session.ask(quoted, again=editing)
        elif entry.startswith("/"):
            commands.run(self, entry)
        elif quoted is None and entry.strip():
            self.session.ask(entry.strip(), again=editing)
