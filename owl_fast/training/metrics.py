"""metrics.jsonl: one line per update, which a full disk delays and does not lose."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


class MetricsLog:
    """Appends lines; those that cannot be written wait for the next call.

    step: lines of later updates are dropped from the file, and what a crash left half-written.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.waiting = b""
        self._failed = False
        self._size = _length_up_to(path, step)
        if path.exists():
            os.truncate(path, self._size)

    def append(self, line: dict[str, Any]) -> None:
        self.waiting += json.dumps(line).encode() + b"\n"
        self.flush()

    def flush(self, sync: bool = False) -> None:
        """Write what waits; sync: onto the disk itself."""
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                self._write(descriptor)
                if sync:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            if not self._failed:
                logger.error("%s cannot be written (%s); its lines wait", self.path, error.strerror)
            self._failed = True
        else:
            self._failed = False

    def _write(self, descriptor: int) -> None:
        """A part that was written before a failure is written again at the same place."""
        done = 0
        while done < len(self.waiting):
            done += os.pwrite(descriptor, self.waiting[done:], self._size + done)
        self._size += done
        self.waiting = b""


def _length_up_to(path: Path, step: int) -> int:
    """Bytes of the file's beginning: whole lines of updates up to `step`."""
    if not path.exists():
        return 0
    length = 0
    with path.open("rb") as file:
        for line in file:
            try:
                wanted = line.endswith(b"\n") and json.loads(line)["step"] <= step
            except (ValueError, KeyError, TypeError):
                wanted = False
            if not wanted:
                break
            length += len(line)
    return length
