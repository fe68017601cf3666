"""What was typed before: one file, a JSON string per line, for its owner's eyes only."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

LIMIT = 1000


class History:
    """Entries, oldest first. path None: nothing is kept. A file that cannot be used is said once, by warn."""

    def __init__(self, path: Path | None, warn: Callable[[str], None]) -> None:
        self.entries: list[str] = []
        self._path, self._warn = path, warn
        if path is None:
            return
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._open(os.O_RDONLY) as file:
                self.entries = [entry for line in file if (entry := _entry(line)) is not None]
            if len(self.entries) > 2 * LIMIT:
                self._shorten()
        except OSError as error:
            self._give_up(error)

    def add(self, text: str) -> None:
        """Remember an entry; what repeats the last one is not kept twice."""
        if not text.strip() or self.entries[-1:] == [text]:
            return
        self.entries.append(text)
        if self._path is None:
            return
        try:
            with self._open(os.O_WRONLY | os.O_APPEND) as file:
                file.write(json.dumps(text) + "\n")
        except OSError as error:
            self._give_up(error)

    def _open(self, flags: int, ending: str = "") -> TextIO:
        descriptor = os.open(f"{self._path}{ending}", flags | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.fchmod(descriptor, 0o600)  # also where the file was there before, with other rights
        return open(descriptor, "r" if flags == os.O_RDONLY else "w", encoding="utf-8", errors="replace")

    def _shorten(self) -> None:
        self.entries = self.entries[-LIMIT:]
        with self._open(os.O_WRONLY | os.O_TRUNC, ".new") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in self.entries)
        os.replace(f"{self._path}.new", str(self._path))

    def _give_up(self, error: OSError) -> None:
        self._warn(f"the history {self._path} cannot be kept ({error.strerror}); the chat goes on without")
        self._path = None


def default_path() -> Path:
    """In the user's state folder, as the XDG rules name it."""
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(base) / "owl_fast" / "history"


def _entry(line: str) -> str | None:
    """The entry of a line; None for a line that was cut off or is none of ours."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, str) else None
