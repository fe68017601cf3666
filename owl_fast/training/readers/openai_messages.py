"""OpenAI's messages: {"messages": [{"role", "content": text or parts}]}, one object a line.

A picture is a part {"type": "image_url", "image_url": {"url"}} or {"type": "image", "image"}, with a path or
a data URI.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from owl_fast.errors import Reason
from owl_fast.prompts import Message
from owl_fast.training.readers.turns import conversation
from owl_fast.training.rows import Row
from owl_fast.training.sample import Sample

ROLES = ("system", "developer", "user", "assistant")


def fits(fields: Mapping[str, Any]) -> bool:
    return "messages" in fields


def read(row: Row) -> Sample:
    turns = row.fields.get("messages")
    if not isinstance(turns, list):
        raise row.error(f'"messages" is {turns!r:.40}; wanted a list', Reason.WRONG_KEYS)
    pictures: list[Any] = []
    messages = [_message(row, turn, f"message {number}", pictures) for number, turn in enumerate(turns)]
    return conversation(row, messages, pictures)


def _message(row: Row, turn: Any, where: str, pictures: list[Any]) -> Message:
    if not isinstance(turn, Mapping) or "role" not in turn:
        raise row.error(f'{where}: {turn!r:.60}; wanted "role" and "content"', Reason.WRONG_KEYS)
    if turn["role"] not in ROLES:
        raise row.error(
            f"{where}: role {turn['role']!r:.40}; wanted one of {', '.join(ROLES)}", Reason.WRONG_ROLES
        )
    for key in ("tool_calls", "function_call"):
        if turn.get(key):
            raise row.error(f'{where}: "{key}" is nothing this model learns', Reason.WRONG_KEYS)
    if turn.get("weight", 1) != 1:
        raise row.error(
            f'{where}: "weight" {turn["weight"]!r:.20}; all answers count alike', Reason.WRONG_KEYS
        )
    content = turn.get("content")
    if isinstance(content, list):
        content = [_part(row, part, pictures) for part in content]
    elif not isinstance(content, str):
        raise row.error(f'{where}: "content" is {content!r:.40}; wanted text or parts', Reason.WRONG_KEYS)
    return {"role": turn["role"], "content": content}


def _part(row: Row, part: Any, pictures: list[Any]) -> Any:
    """A picture's part with the number of the picture; others as they are."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in ("image", "image_url"):
        return part
    value = part.get(kind)
    if kind == "image_url" and isinstance(value, Mapping):
        value = value.get("url")
    pictures.append(row.picture(value))
    return {"type": "image", "image": len(pictures) - 1}
