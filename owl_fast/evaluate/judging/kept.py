"""What a judge said, on disk reply by reply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from owl_fast.evaluation.json_lines import LineFile


class Kept:
    """A LineFile that is begun with the first reply: a judge that never replied leaves none behind.

    lines: what was there. LockedError when another process adds to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = LineFile(path) if path.exists() else None
        self.lines = self._file.lines if self._file else []

    def append(self, value: Mapping[str, Any]) -> None:
        """As LineFile's."""
        if self._file is None:
            self._file = LineFile(self.path)
        self._file.append(value)

    def __enter__(self) -> Kept:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()


@dataclass(frozen=True)
class Judged:
    """What a judge did: in which file, how many replies are there now, how many of them are new, and what
    went wrong, case by case."""

    path: Path
    all: int
    new: int
    troubles: Sequence[str]
