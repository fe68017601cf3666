"""ShareGPT and Vicuna: {"id", "conversations": [{"from": "human" | "gpt" | "system", "value"}]}.

Text only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from owl_fast.errors import Reason
from owl_fast.training.readers.turns import conversation, from_value
from owl_fast.training.rows import Row
from owl_fast.training.sample import Sample


def fits(fields: Mapping[str, Any]) -> bool:
    return "conversations" in fields


def read(row: Row) -> Sample:
    if row.fields.get("image"):
        raise row.error('it has an "image": read such files with --format llava', Reason.WRONG_KEYS)
    turns = from_value(row, "conversations")
    return conversation(row, [{"role": role, "content": text} for role, text in turns])
