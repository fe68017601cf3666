"""JSON objects, one a line or as the elements of a list."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from owl_fast.errors import DataError, Reason
from owl_fast.training.rows.elements import elements
from owl_fast.training.rows.spans import MAX_ROW_BYTES, SpanRows, cannot_be_read


class JsonLines(SpanRows):
    """One object a line; empty lines are passed over."""

    def __init__(self, path: Path, root: Path | None) -> None:
        super().__init__(path, root)
        start = 0
        try:
            with path.open("rb") as file:
                number = 0
                while line := file.readline(MAX_ROW_BYTES + 1):
                    number += 1
                    if len(line) > MAX_ROW_BYTES:
                        raise self.too_long(number)
                    self._hash.update(line)
                    if not line.isspace():
                        self.spans.add(start, len(line), number)
                    start += len(line)
        except OSError as error:
            raise cannot_be_read(path, error) from None

    def fields(self, data: bytes, name: str) -> Mapping[str, Any]:
        return parse_object(data, name)


class JsonList(SpanRows):
    """The elements of a list that is the whole file."""

    def __init__(self, path: Path, root: Path | None) -> None:
        super().__init__(path, root)
        for element in elements(path, self._hash):
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
