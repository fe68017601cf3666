"""The list of a folder's files with their sizes and SHA-256, written last: what we write, we recognise.

Model folders, adapters and snapshots carry one; a folder from elsewhere has none and is read without. Of
safetensors files it also has a CRC-32 of every tensor, to say which one is damaged. Its own digest, of the
list, guards these.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from owl_fast.checkpoints.mapped import map_file
from owl_fast.checkpoints.safetensors_header import safetensors_places
from owl_fast.errors import CheckpointError
from owl_fast.files import file_size, is_there, read_json, write_json

MANIFEST = "owl_manifest.json"
CHUNK = 4 << 20  # hashlib and zlib let other threads run while they work on a chunk


class Manifest(NamedTuple):
    """files: name -> {"bytes", "sha256"}, of .safetensors also "crc32": {tensor: number}."""

    folder: Path
    files: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest of a folder, None where there is none; CheckpointError when it is no such list."""
        path = folder / MANIFEST
        if not is_there(path):
            return None
        raw = read_json(path)
        files = raw.pop("files", None)
        if not isinstance(files, dict) or not all(_is_entry(*item) for item in files.items()):
            raise CheckpointError(f'{path}: damaged; wanted {{"files": {{name: {{"bytes", "sha256"}}}}}}')
        if raw and raw != {"sha256": _digest(files)}:  # lists of earlier versions have none
            raise CheckpointError(f"{path}: damaged, or changed by hand: it is not what its sha256 says")
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
                f"{self.folder / name}: its SHA-256 is not the one {MANIFEST} gives: {self._damaged(name)} "
                f"is damaged or was changed. Copy it anew, or remove {MANIFEST} if the change is yours"
            )

    def _damaged(self, name: str) -> str:
        """What of a file is not as it was, where that can be told."""
        wanted = self._entry(name).get("crc32", {})
        now = _crcs(self.folder / name) if wanted else {}
        found = [tensor for tensor, crc in now.items() if wanted.get(tensor) != crc]
        some = ", ".join(f"tensor {tensor:.200}" for tensor in found[:3])
        return some + ", ..." * (len(found) > 3) or "the file"

    def _entry(self, name: str) -> dict[str, Any]:
        if name not in self.files:
            raise CheckpointError(f"{self.folder / name}: not named by {MANIFEST} beside it")
        return self.files[name]


def write_manifest(folder: str | Path) -> None:
    """List the files of the folder; folders inside are left out, and *.md, which people edit."""
    folder = Path(folder)
    paths = sorted(p for p in folder.iterdir() if p.is_file() and p.name != MANIFEST and p.suffix != ".md")
    files = {path.name: _entry_of(path) for path in paths}
    write_json(folder / MANIFEST, {"files": files, "sha256": _digest(files)})


def _digest(files: dict[str, dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _entry_of(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    for chunk in _chunks(path):
        digest.update(chunk)
    entry = {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
    return entry | {"crc32": _crcs(path)} if path.suffix == ".safetensors" else entry


def _crcs(path: Path) -> dict[str, int]:
    """Of every tensor of a safetensors file."""
    data = memoryview(map_file(path, file_size(path)))
    places = safetensors_places(path, data)
    return {name: zlib.crc32(data[at : at + info.nbytes]) for name, (info, at) in places.items()}


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
