"""Baize: {"topic", "input": "<header>\\n[|Human|] ...\\n[|AI|] ...\\n[|Human|] "}, text only.

Baize's own header gives way to the template's; an empty turn of the human's at the end is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from owl_fast.errors import Reason
from owl_fast.training.readers.turns import conversation
from owl_fast.training.rows import Row
from owl_fast.training.sample import Sample

_TURN = re.compile(r"\[\|(Human|AI)\|\]")
HEADER = "The conversation between human and AI assistant."


def fits(fields: Mapping[str, Any]) -> bool:
    return isinstance(fields.get("input"), str) and _TURN.search(fields["input"]) is not None


def read(row: Row) -> Sample:
    head, *rest = _TURN.split(row.text("input"))
    turns = [
        {"role": "user" if speaker == "Human" else "assistant", "content": text.strip()}
        for speaker, text in zip(rest[::2], rest[1::2], strict=True)
    ]
    if turns and turns[-1] == {"role": "user", "content": ""}:
        turns.pop()
    if not turns:
        raise row.error('"input" has no [|Human|] and [|AI|] in it', Reason.WRONG_KEYS)
    if head.strip() not in ("", HEADER):
        turns.insert(0, {"role": "system", "content": head.strip()})
    return conversation(row, turns)
