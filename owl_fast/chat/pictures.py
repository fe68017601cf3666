"""Pictures and videos a user names: opened at once, so that a broken one is reported where it is named."""

from __future__ import annotations

import glob
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from owl_fast.errors import ImageError

Part = dict[str, Any]

# Where the next picture or video goes when this is typed, as in a prompt that is written out (prompts.py).
MARKS = {"picture": "<image>", "video": "<|video|>"}
MAX_MATCHES = 64


@dataclass(frozen=True)
class Picture:
    """An encoded picture that decodes, its name for the user, and its size in pixels."""

    name: str
    data: bytes
    width: int
    height: int
    kind = "picture"

    @property
    def size(self) -> str:
        return f"{self.width} x {self.height}"

    def part(self) -> Part:
        """The part of a message; the name is for us alone."""
        return {"type": "image", "image": self.data, "name": self.name}


@dataclass(frozen=True)
class Clip:
    """A video whose frames decode: its name for the user, its absolute path, and what is looked at of it."""

    name: str
    path: str
    frames: int
    width: int
    height: int
    kind = "video"

    @property
    def size(self) -> str:
        return f"{self.frames} frame(s) of {self.width} x {self.height}"

    def part(self) -> Part:
        return {"type": "video", "video": self.path, "name": self.name}


Attachment = Picture | Clip


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


def open_video(source: str) -> Clip:
    """Find the frames of a video file. ImageError; UnsupportedError when a package for it is missing."""
    from owl_fast.images import load_image
    from owl_fast.video import Video, load_frames

    frames = [load_image(frame) for frame in load_frames(Video(source))]
    path = os.path.abspath(source)
    return Clip(os.path.basename(path), path, len(frames), frames[0].width, frames[0].height)


def open_all(pictures: Sequence[str | bytes], videos: Sequence[str]) -> list[Attachment]:
    """What flags name: paths, URLs, patterns, or the bytes of a picture."""
    sources = [
        path for given in pictures for path in ([given] if isinstance(given, bytes) else expand(given))
    ]
    clips = [path for given in videos for path in expand(given)]
    return [*map(open_picture, sources), *map(open_video, clips)]


def find_paths(text: str) -> list[str]:
    """What a command names: a path as it stands, or words as a shell reads them, each a path or a pattern."""
    text = text.strip()
    whole = os.path.expanduser(text)
    if os.path.lexists(whole):
        return [whole]
    try:
        words = shlex.split(text)
    except ValueError:  # an apostrophe in a name
        words = [text]
    if not words:
        raise ImageError("no file is named; wanted a path or a pattern: scene.png, photos/*.jpg")
    return [path for word in words for path in expand(word)]


def expand(name: str) -> list[str]:
    """A path or URL as it stands, of a pattern the files it matches. ImageError for none or too many."""
    try:
        path = os.path.expanduser(name)
        if _is_url(path) or os.path.lexists(path) or not glob.has_magic(path):
            return [path]
        found = sorted(match for match in glob.glob(path) if os.path.isfile(match))
    except ValueError:  # a NUL in it
        raise ImageError(f"{name!r:.200}: no file has such a name") from None
    if not found:
        raise ImageError(f"{path!r:.200}: no file matches")
    if len(found) > MAX_MATCHES:
        raise ImageError(f"{path!r:.200}: {len(found)} files match, at most {MAX_MATCHES} at once")
    return found


def _is_url(source: str) -> bool:
    return source.lower().startswith(("http:", "https:"))


def place(text: str, shown: Sequence[Part]) -> list[Part]:
    """Message parts: each typed mark takes the next of its kind, what is left over comes in front."""
    waiting = {mark: [part for part in shown if _mark(part) == mark] for mark in MARKS.values()}
    words, typed = [""], []
    for run in re.split(f"({'|'.join(map(re.escape, waiting))})", text):
        if waiting.get(run):
            typed.append(waiting[run].pop(0))
            words.append("")
        else:
            words[-1] += run
    parts = [part for part in shown if all(part is not other for other in typed)]
    for index, run in enumerate(words):
        if index:
            parts.append(typed[index - 1])
        if run.strip() or not typed:
            parts.append({"type": "text", "text": run.strip() if typed else run})
    return parts


def unplace(content: str | Sequence[Part]) -> tuple[str, list[Part]]:
    """The text, and pictures and videos, that `place` makes this content of. Those in front need no mark."""
    if isinstance(content, str):
        return content, []
    shown = [part for part in content if part["type"] != "text"]
    in_front = list(content[: len(shown)]) == shown
    words = [part["text"] if part["type"] == "text" else _mark(part) for part in content]
    return " ".join(words[len(shown) :] if in_front else words), shown


def _mark(part: Part) -> str:
    return MARKS["video" if part["type"] == "video" else "picture"]
