"""Rows that are stretches of one file's bytes."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from owl_fast.errors import DataError, Reason
from owl_fast.training.rows.row import Row

MAX_ROW_BYTES = 64 << 20


class Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


class Spans:
    """Byte offset, length and line of each row: 24 bytes a row."""

    def __init__(self) -> None:
        self.starts, self.lengths, self.lines = array("Q"), array("Q"), array("Q")

    def add(self, start: int, length: int, line: int) -> None:
        self.starts.append(start)
        self.lengths.append(length)
        self.lines.append(line)

    def __len__(self) -> int:
        return len(self.starts)


class SpanRows(ABC):
    """Rows of a text file; a kind of file says where they lie and how the bytes of one are read."""

    def __init__(self, path: Path, root: Path | None) -> None:
        """digest: SHA-256 of the file, which is read whole to find the rows."""
        self.path, self.root = path, path.parent if root is None else root
        self.spans = Spans()
        digest = hashlib.sha256()
        try:
            self.find(digest)
        except OSError as error:
            raise cannot_be_read(path, error) from None
        self.digest = digest.hexdigest()

    @property
    def groups(self) -> Sequence[int] | None:
        """None: any row is as cheap to read as the next one."""
        return None

    @abstractmethod
    def find(self, digest: Hash) -> None:
        """Go through the file, note its rows in self.spans, and feed all of it to the digest."""

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> Row:
        spans = self.spans
        name = f"{self.path}:{spans.lines[index]}"
        data = read_span(self.path, spans.starts[index], spans.lengths[index])
        return Row(self.fields(data, name), name, self.root)

    @abstractmethod
    def fields(self, data: bytes, name: str) -> Mapping[str, Any]:
        """The fields of a row; name: of the row, for errors."""

    def too_long(self, line: int) -> DataError:
        return DataError(
            f"{self.path}:{line}: a row of more than {MAX_ROW_BYTES >> 20} MiB; "
            "is a line end or a quote missing?"
        )


def read_span(path: Path, start: int, length: int) -> bytes:
    """Bytes of a file; DataError when they are not there (any more)."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            data = os.pread(descriptor, length, start)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise cannot_be_read(path, error) from None
    if len(data) < length:
        raise DataError(f"{path}: {length} bytes wanted at {start}, {len(data)} there; the file was changed")
    return data


def cannot_be_read(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read ({error.strerror})")


def decoded(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 ({error.reason})", Reason.MALFORMED) from None
