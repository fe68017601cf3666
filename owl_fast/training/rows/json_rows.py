"""JSON objects, one a line or as the elements of a list."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from owl_fast.errors import DataError, Reason
from owl_fast.training.rows.elements import elements
from owl_fast.training.rows.spans import MAX_ROW_BYTES, Hash, SpanRows


class JsonLines(SpanRows):
    """One object a line; empty lines are passed over."""

    def find(self, digest: Hash) -> None:
        start = number = 0
        with self.path.open("rb") as file:
            while line := file.readline(MAX_ROW_BYTES + 1):
                number += 1
                if len(line) > MAX_ROW_BYTES:
                    raise self.too_long(number)
                digest.update(line)
                if not line.isspace():
                    self.spans.add(start, len(line), number)
                start += len(line)

    def fields(self, data: bytes, name: str) -> Mapping[str, Any]:
        return parse_object(data, name)


class JsonList(SpanRows):
    """The elements of a list that is the whole file."""

    def find(self, digest: Hash) -> None:
        for element in elements(self.path, digest):
            self.spans.add(element.start, element.length, element.line)

    def fields(self, data: bytes, name: str) -> Mapping[str, Any]:
        return parse_object(data, name)


def parse_object(data: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: not JSON ({error!s:.200})", Reason.NOT_JSON) from None
    if not isinstance(value, dict):
        raise DataError(f"{name}: a {type(value).__name__}; wanted an object", Reason.WRONG_KEYS)
    return value
