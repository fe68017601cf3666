"""Files of one JSON object a line: read strictly, or added to line by line, each on disk when it is said."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

from owl_fast.errors import DataError, DiskError, LockedError
from owl_fast.files import sync
from owl_fast.training.rows.json_rows import parse_object

MAX_BYTES = 64 << 20  # OwlEval's largest file has 0.1 MB


Lines = list[tuple[str, dict[str, Any]]]  # FILE:LINE, the object


def read_lines(path: Path, *, torn: bool = False) -> Lines:
    """Every line that is not empty; DataError names the first that is no object.

    torn: pass over a last line that a LineFile has not finished writing, or never will.
    """
    return _parsed(path, _read(path), torn)[0]


def _parsed(path: Path, data: bytes, torn: bool) -> tuple[Lines, int]:
    """The lines, and how many bytes are theirs."""
    *ended, rest = data.split(b"\n")
    lines = [_parse(path, number, line) for number, line in enumerate(ended, start=1) if line.strip()]
    if rest.strip():
        try:
            lines.append(_parse(path, len(ended) + 1, rest))
        except DataError:
            if not torn:
                raise
            return lines, len(data) - len(rest)
    return lines, len(data)


def _parse(path: Path, number: int, line: bytes) -> tuple[str, dict[str, Any]]:
    where = f"{path}:{number}"
    return where, parse_object(line, where)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if len(data) > MAX_BYTES:
        raise DataError(f"{path}: more than {MAX_BYTES >> 20} MiB; wanted a file of questions or answers")
    return data


def _line(value: Mapping[str, Any]) -> bytes:
    # A lone surrogate has no UTF-8 form: it becomes an escape such as \\ud83e, which JSON reads back.
    return (json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def replace_file(path: Path, data: bytes) -> None:
    """A file with this content, on disk for good, or the one that was there and DiskError."""
    partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        sync(partial)
        partial.replace(path)
        sync(path.parent)
    except OSError as error:
        raise DiskError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


class LineFile:
    """A file that one process at a time adds lines to. A line is there whole or not at all, also after a
    crash: what a crash has left of a last line goes when the next is added.

    lines: what was there, in order. LockedError when another process adds to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror})") from None
        try:
            self._lock()
            data = _read(path)
            self.lines, self._end = _parsed(path, data, torn=True)
            self._size = len(data)
            self._glue = b"\n" if self._end and data[self._end - 1] != ord("\n") else b""
        except BaseException:
            os.close(self._file)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(f"{self.path}: another process writes it; wait for it, or stop it") from None
        except OSError:
            pass  # a file system without locks

    def append(self, value: Mapping[str, Any]) -> None:
        """On disk when this returns; DiskError, and nothing is added, when it cannot be. DataError when
        somebody else has changed the file, or taken it away."""
        self._check_ours()
        line = self._glue + _line(value)
        try:
            os.ftruncate(self._file, self._end)
            written = os.pwrite(self._file, line, self._end)
            if written < len(line):
                raise OSError(0, "disk full")
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, self._end)
            self._size = self._end
            raise DiskError(f"{self.path}: cannot be written ({error.strerror})") from None
        self._end = self._size = self._end + len(line)
        self._glue = b""

    def _check_ours(self) -> None:
        held = os.fstat(self._file)
        try:
            there = os.path.samestat(os.lstat(self.path), held)
        except OSError:
            there = False
        if not there or held.st_size != self._size:
            raise DataError(f"{self.path}: was changed or taken away by somebody else; stop and begin again")

    def rewrite(self, values: Iterable[Mapping[str, Any]]) -> None:
        """These lines instead of all that were there, and no more after them; DiskError, and nothing is
        changed, when they cannot be."""
        replace_file(self.path, b"".join(map(_line, values)))
        self.close()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> LineFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
