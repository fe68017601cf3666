"""The engine inside an application: loaded once, asked from several threads, one conversation per user.

python examples/embed_in_app.py [MODEL]
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from owl_fast import Chat, Engine, OwlError

PICTURES = Path(__file__).parent


class Assistant:
    """What an application would hold: the engine, and a conversation for each of its users."""

    def __init__(self, model: str | None = None) -> None:
        self.engine = Engine.from_pretrained(model, max_context=512)
        self._chats: dict[str, Chat] = {}

    def ask(self, user: str, text: str, picture: Path | None = None) -> str:
        """The answer, or a sentence for the user when the question cannot be answered."""
        chat = self._chats.setdefault(user, self.engine.chat(max_tokens=40))
        try:
            return chat(text, [picture] if picture else []).text
        except OwlError as error:  # everything that can go wrong with a question, and nothing else
            return f"Sorry: {error}"

    def forget(self, user: str) -> None:
        self._chats.pop(user, None)


def main(model: str | None = None) -> None:
    assistant = Assistant(model)
    users: dict[str, list[tuple[str, Path | None]]] = {
        "ada": [("What color is the star?", PICTURES / "scene.png"), ("Where is the circle?", None)],
        "bob": [("What color is the heart?", PICTURES / "two.png")],
        "eve": [("What is this?", PICTURES / "missing.png")],
    }

    def talk(user: str) -> list[str]:
        return [f"{user}: {text} -> {assistant.ask(user, text, picture)}" for text, picture in users[user]]

    # Answers of different users are computed together: each step of the engine serves all of them.
    with ThreadPoolExecutor() as pool:
        for lines in pool.map(talk, users):
            print(*lines, sep="\n")
    stats = assistant.engine.stats()
    print(
        f"{stats.answered} answers, {stats.usage.completion_tokens} tokens, {stats.busy_seconds:.1f} s busy"
    )


if __name__ == "__main__":
    try:
        main(*sys.argv[1:2])
    except OwlError as error:  # the model cannot be had
        raise SystemExit(f"error: {error}") from None
