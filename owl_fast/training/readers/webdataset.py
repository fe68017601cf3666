"""Tar files as img2dataset and webdataset write them: KEY.jpg, KEY.txt, KEY.json.

The caption is the text, or the json's "caption". Conversations, as `owl_fast.data shard` writes them:
KEY.json with {"messages": [...], "images": ["0.jpg", ...]} and KEY.0.jpg beside it, named in this order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from owl_fast.errors import Reason
from owl_fast.training.readers.turns import conversation
from owl_fast.training.rows import Row
from owl_fast.training.rows.json_rows import parse_object
from owl_fast.training.rows.spans import decoded
from owl_fast.training.rows.tar_rows import KEY
from owl_fast.training.sample import Caption, Sample

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")


def fits(fields: Mapping[str, Any]) -> bool:
    return KEY in fields


def read(row: Row) -> Sample | Caption:
    told = parse_object(row.fields["json"], f"{row.name}.json") if "json" in row.fields else {}
    if "messages" in told:
        return _conversation(row, told)
    pictures = [row.fields[name] for name in PICTURES if name in row.fields]
    if len(pictures) != 1:
        raise row.error(
            f"{len(pictures)} pictures; wanted one of .{', .'.join(PICTURES)}", Reason.MISSING_PICTURE
        )
    caption = decoded(row.fields["txt"], f"{row.name}.txt") if "txt" in row.fields else told.get("caption")
    if not isinstance(caption, str) or not caption.strip():
        raise row.error('no caption, neither in .txt nor as "caption" in .json', Reason.NO_ANSWER)
    return Caption(pictures[0], caption.strip(), record=row.name)


def _conversation(row: Row, told: Mapping[str, Any]) -> Sample:
    names = told.get("images", [])
    if not isinstance(told["messages"], list) or not isinstance(names, list):
        raise row.error('.json: wanted {"messages": [...], "images": [...]}', Reason.WRONG_KEYS)
    for name in names:
        if not isinstance(name, str) or name not in row.fields:
            raise row.error(f"no member {name!r:.40} for a picture", Reason.MISSING_PICTURE)
    return conversation(row, told["messages"], [row.fields[name] for name in names])
