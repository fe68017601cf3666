"""The list of a folder's files with their sizes and SHA-256, written last: what we write, we recognise.

Model folders, adapters and snapshots carry one; a folder from elsewhere has none and is read without.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from owl_fast.errors import CheckpointError
from owl_fast.files import file_size, is_there, read_json, write_json

MANIFEST = "owl_manifest.json"
CHUNK = 4 << 20  # hashlib and zlib let other threads run while they work on a chunk


class Manifest(NamedTuple):
    """files: name -> {"bytes", "sha256"}."""

    folder: Path
    files: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest of a folder, None where there is none; CheckpointError when it is no such list."""
        path = folder / MANIFEST
        if not is_there(path):
            return None
        files = read_json(path).get("files")
        if not isinstance(files, dict) or not all(_is_entry(*item) for item in files.items()):
            raise CheckpointError(f'{path}: damaged; wanted {{"files": {{name: {{"bytes", "sha256"}}}}}}')
        return cls(folder, files)

    def check(self, but: Collection[str] = ()) -> None:
        """CheckpointError unless every file is there in its size, and with its SHA-256 if not in `but`."""
        for name in self.files:
            self.check_size(name)
        for name in self.files:
            if name not in but:
                for _ in self.hashing(name, _chunks(self.folder / name)):
                    pass

    def check_size(self, name: str) -> None:
        wanted = self._entry(name)["bytes"]
        if (size := file_size(self.folder / name)) != wanted:
            raise CheckpointError(
                f"{self.folder / name}: {size} bytes; {MANIFEST} says {wanted}. Copy the file anew"
            )

    def hashing(self, name: str, chunks: Iterator[bytes] | Iterator[memoryview]) -> Iterator[None]:
        """Hash a file chunk by chunk, pausing after each; CheckpointError in the end if it is another."""
        wanted = self._entry(name)["sha256"]
        digest = hashlib.sha256()
        for chunk in chunks:
            digest.update(chunk)
            yield
        if digest.hexdigest() != wanted:
            raise CheckpointError(
                f"{self.folder / name}: its SHA-256 is not the one {MANIFEST} gives: the file is damaged or "
                f"was changed. Copy it anew, or remove {MANIFEST} if the change is yours"
            )

    def _entry(self, name: str) -> dict[str, Any]:
        if name not in self.files:
            raise CheckpointError(f"{self.folder / name}: not named by {MANIFEST} beside it")
        return self.files[name]


def write_manifest(folder: str | Path) -> None:
    """List the files of the folder; folders inside are left out, and *.md, which people edit."""
    folder = Path(folder)
    paths = sorted(p for p in folder.iterdir() if p.is_file() and p.name != MANIFEST and p.suffix != ".md")
    write_json(folder / MANIFEST, {"files": {path.name: _entry_of(path) for path in paths}})


def _entry_of(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    for chunk in _chunks(path):
        digest.update(chunk)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def _is_entry(name: str, entry: object) -> bool:
    return (
        "/" not in name
        and isinstance(entry, dict)
        and isinstance(entry.get("bytes"), int)
        and isinstance(entry.get("sha256"), str)
    )
