"""Columns of a table (CSV, TSV, Parquet, or the keys of JSON objects):

image, caption              a picture and its caption
question, answer            a conversation; also image (one, or a list) and system where they are there

Files whose columns have other names are read with --columns image=path,caption=title; the others keep theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from owl_fast.errors import Reason
from owl_fast.prompts import Message
from owl_fast.training.readers.turns import conversation
from owl_fast.training.rows import Row
from owl_fast.training.sample import Caption, Sample

NAMES = ("image", "caption", "question", "answer", "system")
CAPTION, TURN = {"caption"}, {"question", "answer"}


def fits(fields: Mapping[str, Any]) -> bool:
    return {"image", "caption"} <= fields.keys() or {"question", "answer"} <= fields.keys()


def renamed(fields: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Fields under our names. columns: our name -> theirs. Who names a caption means no conversation that
    may stand beside it, and the other way round."""
    other = CAPTION if columns.keys() & TURN else TURN if columns.keys() & CAPTION else set()
    own = {name: fields[name] for name in NAMES if name in fields and name not in other}
    return own | {ours: fields[theirs] for ours, theirs in columns.items()}


def read(row: Row) -> Sample | Caption:
    pictures = row.pictures("image")
    if "caption" in row.fields:
        if len(pictures) != 1:
            raise row.error(f"{len(pictures)} pictures with a caption; wanted one", Reason.MISSING_PICTURE)
        return Caption(pictures[0], row.answer("caption").strip(), record=row.name)
    content: list[Mapping[str, Any]] = [{"type": "image", "image": number} for number in range(len(pictures))]
    content.append({"type": "text", "text": row.text("question")})
    messages: list[Message] = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": row.answer("answer")},
    ]
    if row.fields.get("system"):
        messages.insert(0, {"role": "system", "content": row.text("system")})
    return conversation(row, messages, pictures)
