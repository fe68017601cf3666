"""One row of a data file, and what every reader asks of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from owl_fast.errors import DataError, Reason


@dataclass(frozen=True)
class Row:
    """fields: what stands in it. name: file and line, for messages. root: folder that picture paths start
    from, and do not leave."""

    fields: Mapping[str, Any]
    name: str
    root: Path

    def error(self, detail: str, reason: Reason) -> DataError:
        return DataError(f"{self.name}: {detail}", reason)

    def text(self, key: str) -> str:
        """A field that must be text."""
        value = self.fields.get(key)
        if isinstance(value, str):
            return value
        if key not in self.fields:
            raise self.error(f'no "{key}"; it has {_listed(self.fields)}', Reason.WRONG_KEYS)
        raise self.error(f'"{key}" is {value!r:.80}; wanted text', Reason.WRONG_KEYS)

    def answer(self, key: str) -> str:
        """A field of text to be learned."""
        text = self.text(key)
        if not text.strip():
            raise self.error(f'"{key}" is empty; nothing to learn from', Reason.NO_ANSWER)
        return text

    def pictures(self, key: str) -> list[Any]:
        """A field with one picture, a list of them, or none."""
        value = self.fields.get(key)
        if value is None or value == "":
            return []
        return [self.picture(entry) for entry in (value if isinstance(value, list) else [value])]

    def picture(self, value: Any) -> Path | str | bytes:
        """What load_image takes: a path below the root, a data URI, or the encoded bytes.

        {"bytes", "path"}, as Parquet files of pictures have it, is either. DataError for anything else, for a
        path out of the root, and for a URL: nothing is fetched while training.
        """
        if isinstance(value, Mapping):
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if isinstance(value, bytes) and value:
            return value
        if not isinstance(value, str) or not value:
            raise self.error(f"a picture is {value!r:.80}; wanted the path of a file", Reason.WRONG_KEYS)
        if value.startswith("data:"):
            return value
        if value.startswith(("http:", "https:")):
            raise self.error(f"{value!r:.120}: a URL; download the pictures first", Reason.MISSING_PICTURE)
        return self._path(value)

    def _path(self, value: str) -> Path:
        # Normalised by its text, and opened so: links below the root are whoever put the data there's own.
        root = os.path.abspath(self.root)
        path = os.path.normpath(os.path.join(root, value))
        if os.path.commonpath([root, path]) != root:
            raise self.error(
                f"{value!r:.200}: outside the folder of the pictures, {root}; name another with --images",
                Reason.OUTSIDE_ROOT,
            )
        return Path(path)


def _listed(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{key!r:.40}" for key in list(fields)[:8]) or "nothing"
