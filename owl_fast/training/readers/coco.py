"""COCO's captions: a sample per annotation, its picture found by the image's id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from owl_fast.training.rows import Row
from owl_fast.training.sample import Caption


def fits(fields: Mapping[str, Any]) -> bool:
    return isinstance(fields.get("annotation"), Mapping) and isinstance(fields.get("image"), Mapping)


def read(row: Row) -> Caption:
    caption = Row(row.fields["annotation"], row.name, row.root).answer("caption")
    file_name = Row(row.fields["image"], row.name, row.root).text("file_name")
    return Caption(row.picture(file_name), caption.strip(), record=row.name)
