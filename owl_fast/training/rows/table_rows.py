"""CSV and TSV files with a line of names on top; fields may be quoted and hold line ends."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from owl_fast.errors import DataError, Reason
from owl_fast.training.rows.spans import MAX_ROW_BYTES, Hash, SpanRows, decoded, read_span


class TableRows(SpanRows):
    """fields: text by column name. The csv module says where records end, here and when one is read."""

    def __init__(self, path: Path, root: Path | None, separator: str) -> None:
        self._separator = separator
        super().__init__(path, root)
        self.columns: tuple[str, ...] = self._header()

    def find(self, digest: Hash) -> None:
        with self.path.open("rb") as file:
            self._find(file, digest)

    def _find(self, file: BinaryIO, digest: Hash) -> None:
        """Note where records begin: the reader takes as many lines as belong to the next one."""
        end = lines = 0

        def feed() -> Iterator[str]:
            nonlocal end, lines
            while line := file.readline(MAX_ROW_BYTES + 1):
                if end + len(line) - start > MAX_ROW_BYTES:
                    raise self.too_long(first)
                digest.update(line)
                end, lines = end + len(line), lines + 1
                yield line.decode("utf-8", "surrogateescape")

        records = csv.reader(feed(), delimiter=self._separator)
        with _any_length():
            while True:
                start, first = end, lines + 1
                try:
                    record = next(records, None)
                except csv.Error as error:
                    raise DataError(f"{self.path}:{first}: no row of a table ({error})") from None
                if record is None:
                    return
                if record:
                    self.spans.add(start, end - start, first)

    def _header(self) -> tuple[str, ...]:
        if not len(self.spans):
            raise DataError(f"{self.path}: empty; wanted a line of column names")
        name = f"{self.path}:{self.spans.lines[0]}"
        data = read_span(self.path, self.spans.starts[0], self.spans.lengths[0])
        columns = tuple(self._record(data, name))
        if len(set(columns)) < len(columns):
            raise DataError(f"{name}: a column name occurs twice: {', '.join(columns):.200}")
        for values in (self.spans.starts, self.spans.lengths, self.spans.lines):
            values.pop(0)
        return columns

    def _record(self, data: bytes, name: str) -> list[str]:
        lines = io.StringIO(decoded(data, name), newline="")
        try:
            with _any_length():
                return next(csv.reader(lines, delimiter=self._separator, strict=True))
        except csv.Error as error:
            raise DataError(f"{name}: no row of a table ({error})", Reason.MALFORMED) from None

    def fields(self, data: bytes, name: str) -> Mapping[str, Any]:
        record = self._record(data, name)
        if len(record) != len(self.columns):
            raise DataError(
                f"{name}: {len(record)} fields, but {len(self.columns)} columns", Reason.MALFORMED
            )
        return dict(zip(self.columns, record, strict=True))


@contextmanager
def _any_length() -> Iterator[None]:
    """Within the block fields may be as long as rows; the csv module's limit holds for all its readers."""
    before = csv.field_size_limit(MAX_ROW_BYTES)
    try:
        yield
    finally:
        csv.field_size_limit(before)
