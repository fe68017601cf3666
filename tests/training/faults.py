"""Making a run's process die, or its disk fill, at a chosen call of the operating system.

A run writes its files through these functions of os alone, apart from small JSON files, whose text is written
through Path.write_text.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CALLS = ("open", "write", "pwrite", "fsync", "rename", "unlink", "mkdir", "rmdir", "truncate")
WRITES = ("write", "pwrite")


class Crash(BaseException):
    """The process dies here."""


class Faults:
    """Counts the calls on files below `folder`, and lets those that `broken` names fail.

    broken(k): whether the k-th call (0 is the first) fails; act(): how. A write that fails has written half.
    """

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        folder: Path,
        broken: Callable[[int], bool],
        act: Callable[[], None],
        calls: tuple[str, ...] = CALLS,
    ) -> None:
        self.count, self._folder = 0, str(folder)
        self._broken, self._act = broken, act
        self._open: dict[int, bool] = {}
        self._real = {name: getattr(os, name) for name in (*CALLS, "close")}
        self._real["fsync"] = lambda descriptor: None  # slow, and nothing here cuts the power
        self._counted = calls
        for name in CALLS:
            patch.setattr(os, name, self._wrap(name))
        patch.setattr(os, "close", self._close)
        real_text = Path.write_text

        def write_text(path: Path, text: str, *args: Any, **keywords: Any) -> int:
            if self._due(str(path).startswith(self._folder), "write"):
                path.write_bytes(text.encode()[: len(text) // 2])
                self._act()
            return real_text(path, text, *args, **keywords)

        patch.setattr(Path, "write_text", write_text)

    def _due(self, ours: bool, name: str) -> bool:
        if not ours or name not in self._counted:
            return False
        self.count += 1
        return self._broken(self.count - 1)

    def _ours(self, first: Any, directory: int | None) -> bool:
        if isinstance(first, int):
            return self._open.get(first, False)
        if directory is not None:  # shutil.rmtree names files by their folder's descriptor
            return self._open.get(directory, False)
        return os.fspath(first).startswith(self._folder)

    def _wrap(self, name: str) -> Callable[..., Any]:
        real = self._real[name]

        def call(first: Any, *args: Any, **keywords: Any) -> Any:
            ours = self._ours(first, keywords.get("dir_fd"))
            if self._due(ours, name):
                if name in WRITES:
                    real(first, bytes(args[0])[: len(args[0]) // 2], *args[1:])
                self._act()
            found = real(first, *args, **keywords)
            if name == "open":
                self._open[found] = ours
            return found

        return call

    def _close(self, descriptor: int) -> None:
        self._open.pop(descriptor, None)
        self._real["close"](descriptor)


def die() -> None:
    raise Crash


def disk_full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
