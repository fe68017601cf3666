"""Tar files whose members are the parts of samples: KEY.jpg, KEY.txt, KEY.json behind each other.

The headers are gone through once; members are then read where they lie, in any order.
"""

from __future__ import annotations

import hashlib
import tarfile
from array import array
from collections.abc import Sequence
from pathlib import Path

from owl_fast.errors import DataError
from owl_fast.training.rows.row import Row
from owl_fast.training.rows.spans import cannot_be_read, read_span
from owl_fast.training.rows.stamp import stamp

KEY = "__key__"
BLOCK = 512
MAX_MEMBER_BYTES = 64 << 20
MAX_EXTENSIONS = 1000


class TarRows:
    """fields: bytes by extension, which begins behind the first dot of the name, and the sample's key."""

    def __init__(self, path: Path, root: Path | None) -> None:
        self.path, self.root = path, path.parent if root is None else root
        self._starts, self._sizes, self._kinds = array("Q"), array("Q"), array("H")  # of each member
        self._firsts = array("Q")  # of each sample
        self._extensions: dict[str, int] = {}
        self.digest = self._find()

    def _find(self) -> str:
        """Note where members lie; the digest of the list."""
        contents, key, last = hashlib.sha256(), None, "its beginning"
        try:
            with tarfile.open(self.path, "r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                    last = f"{member.name!r:.200}"
                    contents.update(f"{last} {member.size}\n".encode())
                    folder, _, name = member.name.rpartition("/")
                    stem, dot, extension = name.partition(".")
                    if member.isreg() and stem and dot:
                        if key != (key := (folder, stem)):
                            self._firsts.append(len(self._starts))
                        self._add(member, extension.lower())
                self._check_end(tar.offset, last)
            return stamp(self.path, contents)
        except tarfile.TarError as error:
            raise DataError(f"{self.path}: cut off or broken in or behind {last} ({error})") from None
        except OSError as error:
            raise cannot_be_read(self.path, error) from None

    def _add(self, member: tarfile.TarInfo, extension: str) -> None:
        if member.size > MAX_MEMBER_BYTES:
            raise DataError(
                f"{self.path}: {member.name!r:.200} has {member.size} bytes; "
                f"wanted at most {MAX_MEMBER_BYTES >> 20} MiB"
            )
        self._starts.append(member.offset_data)
        self._sizes.append(member.size)
        self._kinds.append(self._extensions.setdefault(extension, len(self._extensions)))
        if len(self._extensions) > MAX_EXTENSIONS:
            raise DataError(
                f"{self.path}: more than {MAX_EXTENSIONS} extensions ({member.name!r:.200}, ...); "
                "the key of a sample ends at the first dot"
            )

    def _check_end(self, offset: int, last: str) -> None:
        """A whole file ends in blocks of zeros; tarfile takes what ends anyhow for whole."""
        with self.path.open("rb") as file:
            file.seek(offset)
            if file.read(BLOCK) != bytes(BLOCK):
                raise DataError(f"{self.path}: cut off or broken behind {last}; copy the file anew")

    @property
    def groups(self) -> Sequence[int] | None:
        """All of them: a file is read more quickly at one place than here and there."""
        return [len(self)]

    def __len__(self) -> int:
        return len(self._firsts)

    def __getitem__(self, index: int) -> Row:
        first = self._firsts[index]
        end = self._firsts[index + 1] if index + 1 < len(self) else len(self._starts)
        names = list(self._extensions)
        parts = {
            names[self._kinds[i]]: read_span(self.path, self._starts[i], self._sizes[i])
            for i in range(first, end)
        }
        key = self._key(first)
        return Row({KEY: key, **parts}, f"{self.path}:{key}", self.root)

    def _key(self, member: int) -> str:
        """From the header in front of a member's bytes, where a long name is cut."""
        header = read_span(self.path, self._starts[member] - BLOCK, BLOCK)
        name = header[:100].rstrip(b"\0").decode("utf-8", "replace")
        folder, slash, base = name.rpartition("/")
        key = folder + slash + base.partition(".")[0]
        return "".join(letter if letter.isprintable() else "\ufffd" for letter in key)
