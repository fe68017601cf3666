"""Pictures a user names: opened at once, so that a broken one is reported where it is named."""

from __future__ import annotations

import glob
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from owl_fast.errors import ImageError

Part = dict[str, Any]

MARK = "<image>"
MAX_MATCHES = 64


@dataclass(frozen=True)
class Picture:
    """An encoded picture that decodes, its name for the user, and its size in pixels."""

    name: str
    data: bytes
    width: int
    height: int

    def part(self) -> Part:
        """The part of a message; the name is for us alone."""
        return {"type": "image", "image": self.data, "name": self.name}


def open_picture(source: str | bytes) -> Picture:
    """Read and check one picture: a path, a URL, or the bytes themselves (from stdin). ImageError."""
    from owl_fast.images import load_image

    name = os.path.basename(source) if isinstance(source, str) else "stdin"
    if isinstance(source, str) and _is_url(source):
        from owl_fast.fetch import ANY_HOST, Fetcher

        source = Fetcher([ANY_HOST])(source)
    image = load_image(source)
    data = Path(source).read_bytes() if isinstance(source, str) else source
    return Picture(name, data, image.width, image.height)


def open_pictures(text: str) -> list[Picture]:
    """What /image names: a path as it stands, or words as a shell reads them, each a path or a pattern."""
    return [open_picture(path) for path in find_paths(text)]


def find_paths(text: str) -> list[str]:
    text = text.strip()
    whole = os.path.expanduser(text)
    if os.path.lexists(whole):
        return [whole]
    try:
        words = shlex.split(text)
    except ValueError:  # an apostrophe in a name
        words = [text]
    if not words:
        raise ImageError("/image wants a path, URL or pattern: /image scene.png, /image photos/*.jpg")
    return [path for word in words for path in _matches(os.path.expanduser(word))]


def _is_url(source: str) -> bool:
    return source.lower().startswith(("http:", "https:"))


def _matches(path: str) -> list[str]:
    if _is_url(path) or os.path.lexists(path) or not glob.has_magic(path):
        return [path]
    found = sorted(match for match in glob.glob(path) if os.path.isfile(match))
    if not found:
        raise ImageError(f"{path!r:.200}: no file matches")
    if len(found) > MAX_MATCHES:
        raise ImageError(f"{path!r:.200}: {len(found)} files match, at most {MAX_MATCHES} at once")
    return found


def place(text: str, pictures: Sequence[Part]) -> list[Part]:
    """Message parts: each typed <image> takes the next picture, the pictures left over come in front."""
    pieces = text.split(MARK, len(pictures))
    typed = len(pieces) - 1
    parts = list(pictures[typed:])
    for index, piece in enumerate(pieces):
        if index:
            parts.append(pictures[index - 1])
        if piece.strip() or not typed:
            parts.append({"type": "text", "text": piece.strip() if typed else piece})
    return parts


def unplace(content: str | Sequence[Part]) -> tuple[str, list[Part]]:
    """The text and pictures that `place` makes this content of. Pictures in front need no mark."""
    if isinstance(content, str):
        return content, []
    pictures = [part for part in content if part["type"] != "text"]
    in_front = list(content[: len(pictures)]) == pictures
    words = [part["text"] if part["type"] == "text" else MARK for part in content]
    return " ".join(words[len(pictures) :] if in_front else words), pictures
