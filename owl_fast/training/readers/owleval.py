"""OwlEval: {"image": "1.jpg", "question_id": 1, "question": "..."}, with "answer" in files of answers.

Questions alone are conversations to be answered; to train on them is an error, as nothing is to be learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from owl_fast.prompts import Message
from owl_fast.training.rows import Row
from owl_fast.training.sample import Sample


def fits(fields: Mapping[str, Any]) -> bool:
    return "question_id" in fields and "question" in fields


def read(row: Row) -> Sample:
    pictures = row.pictures("image")
    parts: list[Mapping[str, Any]] = [{"type": "image", "image": number} for number in range(len(pictures))]
    parts.append({"type": "text", "text": row.text("question")})
    messages: list[Message] = [{"role": "user", "content": parts}]
    if "answer" in row.fields:
        messages.append({"role": "assistant", "content": row.answer("answer")})
    return Sample(messages, pictures, row.name)
