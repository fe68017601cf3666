"""Turns as data formats write them -> checked messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from owl_fast.errors import PromptError, Reason
from owl_fast.prompts import IMAGE_TEXT, Message, check_messages, picture_content
from owl_fast.training.rows import Row
from owl_fast.training.sample import Sample

# What formats call the speakers.
ROLES = {
    "system": "system",
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "assistant", "bing", "bard", "model"), "assistant"),
}


def from_value(row: Row, key: str) -> list[tuple[str, str]]:
    """Roles and texts of a list of {"from", "value"}."""
    turns = row.fields.get(key)
    if not isinstance(turns, list):
        raise row.error(f'"{key}" is {turns!r:.40}; wanted a list of turns', Reason.WRONG_KEYS)
    found = []
    for number, turn in enumerate(turns):
        speaker = turn.get("from") if isinstance(turn, Mapping) else None
        text = turn.get("value") if isinstance(turn, Mapping) else None
        if not isinstance(speaker, str) or not isinstance(text, str):
            raise row.error(f'turn {number}: {turn!r:.80}; wanted "from" and "value"', Reason.WRONG_KEYS)
        if speaker not in ROLES:
            raise row.error(
                f"turn {number}: {speaker!r:.40} speaks; wanted one of {', '.join(ROLES)}", Reason.WRONG_ROLES
            )
        found.append((ROLES[speaker], text))
    return found


def with_pictures(row: Row, turns: Sequence[tuple[str, str]], pictures: Sequence[Any]) -> Sample:
    """Each "<image>" of the user's turns is the next picture; as many must have come."""
    places = [text.count(IMAGE_TEXT) for _, text in turns]
    if sum(places) != len(pictures):
        raise row.error(
            f"{len(pictures)} picture(s), but {sum(places)} {IMAGE_TEXT} in the text", Reason.PICTURE_COUNT
        )
    messages: list[Message] = []
    seen = 0
    for (role, text), count in zip(turns, places, strict=True):
        if count and role != "user":
            raise row.error(
                f"{IMAGE_TEXT} in a turn of the {role}; wanted it in a user's", Reason.PICTURE_COUNT
            )
        messages.append({"role": role, "content": picture_content(text, seen) if count else text})
        seen += count
    return conversation(row, messages, pictures)


def conversation(row: Row, messages: Sequence[Message], pictures: Sequence[Any] = ()) -> Sample:
    """The sample, when the messages are well formed and one of them is an answer with words in it."""
    try:
        check_messages(messages)
    except PromptError as error:
        raise row.error(str(error), Reason.WRONG_ROLES) from None
    if not any(message["role"] == "assistant" and _has_words(message["content"]) for message in messages):
        raise row.error("no answer in it, or only empty ones; nothing to learn from", Reason.NO_ANSWER)
    return Sample(messages, pictures, row.name)


def _has_words(content: Any) -> bool:
    texts = [content] if isinstance(content, str) else [part["text"] for part in content]
    return any(text.strip() for text in texts)
