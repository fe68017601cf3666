"""The elements of JSON lists, found without parsing what is in them.

Only brackets and strings matter for where an element begins and ends, so a file of any size is gone through
with one buffer. Elements that are broken inside, yet closed, do not hide those behind them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from owl_fast.errors import DataError, Reason
from owl_fast.training.rows.spans import MAX_ROW_BYTES, Hash

CHUNK = 1 << 20

_TEXT = rb'[^"\[\]{}]*(?:"[^"\\]*(?:\\.[^"\\]*)*"[^"\[\]{}]*)*'
# Up to the next bracket outside of strings. No part can match what another one does: time stays linear.
_BRACKET = re.compile(_TEXT + rb"([\[\]{}])", re.DOTALL)
# The same within an element, past objects and lists that have no others in them.
_INNER = re.compile(_TEXT + rb"(?:[\[{]" + _TEXT + rb"[\]}]" + _TEXT + rb")*([\[\]{}])", re.DOTALL)
_KEY = re.compile(rb'"((?:[^"\\]|\\.)*)"\s*:\s*\Z')
_BLANK = b" \t\r\n"


class Element(NamedTuple):
    """key: of the list within an object; "" where the file is one list."""

    key: str
    start: int
    length: int
    line: int


def elements(path: Path, digest: Hash, keys: Collection[str] = ()) -> Iterator[Element]:
    """Objects and lists in the list that the file is or, with `keys`, in these lists of the object it is.

    DataError gives file and line where it is no such file, or ends too early.
    """
    with path.open("rb") as file:
        yield from _Scan(path, file, digest, keys).run()


class _Scan:
    def __init__(self, path: Path, file: BinaryIO, digest: Hash, keys: Collection[str]) -> None:
        self.path, self.file, self.digest, self.keys = path, file, digest, keys
        self.level = 2 if keys else 1  # brackets open around an element
        self.buffer, self.base, self.at = b"", 0, 0  # base: the file's offset of the buffer
        self.line, self.depth, self.key, self.count = 1, 0, "" if not keys else None, 0

    def run(self) -> Iterator[Element]:
        start = line = 0
        ended = False
        while (found := self._bracket()) is not None:
            begin, bracket, place = found
            if ended:
                raise self._error("something stands behind its end")
            if self.depth == 0:
                self._check_start(self._gap(begin), bracket)
            if bracket in b"[{":
                if self.depth == 1 and self.level == 2:
                    self._begin_list(self._gap(begin), bracket)
                elif self.depth == self.level and self.key is not None:
                    self._check_gap(self._gap(begin), b"," if self.count else b"")
                    start, line = place, self.line
                self.depth += 1
                continue
            self.depth -= 1
            if self.depth == self.level and self.key is not None:
                self.count += 1
                yield Element(self.key, start, place + 1 - start, line)
            elif self.depth == self.level - 1 and self.key is not None:
                self._check_gap(self._gap(begin), b"")
                self.key = None
            ended = self.depth == 0
        self._check_end(ended)

    def _bracket(self) -> tuple[int, bytes, int] | None:
        """Where the search began in the buffer, the next bracket, its offset in the file; None at the end."""
        within = self.depth > self.level and self.key is not None
        pattern = _INNER if within else _BRACKET
        while (match := pattern.match(self.buffer, self.at)) is None:
            chunk = self.file.read(max(CHUNK, len(self.buffer) - self.at))
            if not chunk:
                return None
            self.digest.update(chunk)
            self.buffer, self.base, self.at = self.buffer[self.at :] + chunk, self.base + self.at, 0
            if len(self.buffer) > 2 * MAX_ROW_BYTES:
                raise self._error(f"{MAX_ROW_BYTES >> 20} MiB without a bracket; is a quote missing?")
        begin, place = self.at, match.start(1)
        self.line += self.buffer.count(b"\n", begin, place)
        self.at = place + 1
        return begin, match[1], self.base + place

    def _gap(self, begin: int) -> bytes:
        """What stands before the bracket just found."""
        return self.buffer[begin : self.at - 1]

    def _check_start(self, gap: bytes, bracket: bytes) -> None:
        wanted = b"{" if self.keys else b"["
        if gap.removeprefix(b"\xef\xbb\xbf").strip(_BLANK) or bracket != wanted:
            raise self._error(f"wanted {wanted.decode()} at its beginning")

    def _begin_list(self, gap: bytes, bracket: bytes) -> None:
        found = _KEY.search(gap)
        key = found[1].decode("utf-8", "replace") if found and bracket == b"[" else None
        self.key, self.count = (key if key in self.keys else None), 0

    def _check_gap(self, gap: bytes, wanted: bytes) -> None:
        if (came := gap.strip(_BLANK)) != wanted:
            said = f"between rows stands {came[:40]!r}, wanted {wanted!r}"
            raise self._error(f"{said} (behind row {self.count} of the list)")

    def _check_end(self, ended: bool) -> None:
        rest = self.buffer[self.at :].strip(_BLANK)
        if not ended:
            raise self._error(f"it ends within the list, in or behind row {self.count + 1}; copy it anew")
        if rest:
            raise self._error("something stands behind its end")

    def _error(self, detail: str) -> DataError:
        return DataError(f"{self.path}:{self.line}: not JSON: {detail}", Reason.NOT_JSON)
