"""LLaVA: {"id", "image": path or list of paths, "conversations": [{"from": "human" | "gpt", "value"}]}.

Each "<image>" in the human's turns is the place of a picture; rows without pictures may stand among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from owl_fast.training.readers.turns import from_value, with_pictures
from owl_fast.training.rows import Row
from owl_fast.training.sample import Sample


def fits(fields: Mapping[str, Any]) -> bool:
    return "conversations" in fields and "image" in fields


def read(row: Row) -> Sample:
    turns = from_value(row, "conversations")
    return with_pictures(row, turns, row.pictures("image"))
