"""What kind of file it is, told by its content."""

from __future__ import annotations

import codecs
import hashlib
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from owl_fast.errors import DataError
from owl_fast.training.rows.coco_rows import ANNOTATIONS, IMAGES, CocoRows
from owl_fast.training.rows.elements import elements
from owl_fast.training.rows.json_rows import JsonLines, JsonList
from owl_fast.training.rows.parquet_rows import ParquetRows
from owl_fast.training.rows.row import Row
from owl_fast.training.rows.spans import cannot_be_read
from owl_fast.training.rows.table_rows import TableRows
from owl_fast.training.rows.tar_rows import TarRows

COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
HEAD_BYTES = 1 << 16
JSON_NAMES = (".json", ".jsonl", ".ndjson")


class Rows(Protocol):
    """rows[index] reads a row; DataError when it is broken. groups: sizes of parts that are cheaper to read
    one after another. digest: of the content, or what stands for it."""

    path: Path

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Row: ...
    @property
    def groups(self) -> Sequence[int] | None: ...
    @property
    def digest(self) -> str: ...


def open_rows(path: Path, root: Path | None = None) -> Rows:
    """The rows of a file. root: where picture paths start; the file's own folder by default.

    DataError: not readable, or none of these kinds.
    """
    try:
        with path.open("rb") as file:
            head = b"\n"
            while head.isspace():
                head = file.readline(HEAD_BYTES)
    except OSError as error:
        raise cannot_be_read(path, error) from None
    for mark, name in COMPRESSED.items():
        if head.startswith(mark):
            raise DataError(f"{path}: compressed with {name}; unpack it")
    if head.startswith(b"PAR1"):
        return ParquetRows(path, root)
    if _is_tar(path):
        return TarRows(path, root)
    return _open_text(path, root, head)


def _open_text(path: Path, root: Path | None, head: bytes) -> Rows:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"["):
        return JsonList(path, root)
    if text.startswith(b"{"):
        return CocoRows(path, root) if _is_coco(path) else JsonLines(path, root)
    if path.suffix.lower() in JSON_NAMES:
        return JsonLines(path, root)
    if b"\0" in head or not _is_text(head):
        raise DataError(f"{path}: no kind of data file that is known: JSON, CSV, TSV, Parquet, tar")
    return TableRows(path, root, "\t" if b"\t" in head else ",")


def _is_tar(path: Path) -> bool:
    try:
        return tarfile.is_tarfile(path)
    except OSError:
        return False


def _is_text(line: bytes) -> bool:
    """Whether this is UTF-8, perhaps cut off at its end."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(line)
    except UnicodeDecodeError:
        return False
    return True


def _is_coco(path: Path) -> bool:
    """Whether the file is one object with COCO's lists, rather than the first of many."""
    try:
        found = elements(path, hashlib.sha256(), (IMAGES, ANNOTATIONS))
        return any(element.key == ANNOTATIONS for element in found)
    except DataError:
        return False
