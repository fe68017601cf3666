"""Alpaca: {"instruction", "input", "output"}, text only; the input follows the instruction on a new line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from owl_fast.training.readers.turns import conversation
from owl_fast.training.rows import Row
from owl_fast.training.sample import Sample


def fits(fields: Mapping[str, Any]) -> bool:
    return "instruction" in fields and "output" in fields


def read(row: Row) -> Sample:
    asked = row.text("instruction")
    if row.fields.get("input"):
        asked += "\n" + row.text("input")
    answer = {"role": "assistant", "content": row.answer("output")}
    return conversation(row, [{"role": "user", "content": asked}, answer])
