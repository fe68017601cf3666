"""The original's training records, usually one JSON object a line:

{"image": ["a.jpg"], "text": "<header>\\nHuman: <image>\\nHuman: ...\\nAI: ...", "task_type": "llava_sft"}

"image" is missing or empty in text-only records; other keys are ignored, as in the original.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from owl_fast.prompts import parse_record_text
from owl_fast.training.rows import Row
from owl_fast.training.sample import Sample

_TURN = re.compile(r"^(Human|AI):", re.MULTILINE)


def fits(fields: Mapping[str, Any]) -> bool:
    return isinstance(fields.get("text"), str) and _TURN.search(fields["text"]) is not None


def read(row: Row) -> Sample:
    text = row.text("text")
    pictures = row.pictures("image")
    return Sample(parse_record_text(text, len(pictures), row.name), pictures, row.name)
