"""Small files from outside: regular ones, of a bounded size, whole.

Everything a model folder holds beside its weights is read through here: a pipe cannot make the reader wait,
a device or a file of many gigabytes cannot fill the memory.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from owl_fast.errors import CheckpointError

# The largest of these files in use, the index of a sharded checkpoint, has about 0.1 MB.
MAX_JSON_BYTES = 4 << 20


def is_there(path: str | Path) -> bool:
    """Whether anything has this name. What is no readable file, such as a link to nowhere, is there too: to
    be complained about, not to be passed over as if nobody had put it there."""
    return os.path.lexists(path)


def file_size(path: str | Path) -> int:
    """Bytes of a regular file; CheckpointError names it when it is missing or something else."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path!s:.300}: cannot be read ({reason_of(error)})") from None
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path}: not a regular file")
    return status.st_size


def read_bytes(path: str | Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes."""
    size = file_size(path)
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({reason_of(error)})") from None
    if len(data) > limit:
        raise CheckpointError(f"{path}: {max(size, len(data))} bytes; wanted at most {limit}")
    return data


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON object; CheckpointError when it is something else or one of its objects has a key twice."""
    data = read_bytes(path, MAX_JSON_BYTES)
    try:
        raw = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error!s:.200})") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(raw).__name__}")
    return raw


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; readers otherwise keep the last of two equal keys in silence."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r:.120} is listed twice")
        found[key] = value
    return found


def write_json(path: str | Path, value: object) -> None:
    Path(path).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reason_of(error: Exception) -> str:
    """Why a file cannot be read or written: what the system says, or that no file can have this name (NUL, a
    lone surrogate)."""
    return error.strerror or "odd name" if isinstance(error, OSError) else "odd name"
