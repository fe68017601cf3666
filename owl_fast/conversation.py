"""A conversation as plain data: OpenAI-style messages that can be continued, taken back, saved and loaded.

The file is JSON, {"messages": [...]}: the messages themselves. A picture is kept as {"type": "image",
"image": PATH} when it came as a path, and otherwise inside the file as {"type": "image_url", "image_url":
{"url": "data:..."}}; a video always as its path, or those of its frames. A bare list of messages is read as
well; a relative path counts from the file's folder.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from PIL import Image

from owl_fast.errors import DataError, ImageError, PromptError
from owl_fast.files import reason_of
from owl_fast.images import load_image
from owl_fast.picture_files import MAX_BYTES
from owl_fast.prompts import Message, check_messages
from owl_fast.video import Video, read_video

MAX_FILE_BYTES = 256 << 20
REMOTE = ("data:", "http:", "https:")
# Modes that a PNG holds as they are.
PNG_MODES = {"1", "L", "LA", "I;16", "P", "RGB", "RGBA"}


class Conversation:
    """Messages so far. `messages` is an ordinary list: read it, change it, pass it to Engine.generate."""

    def __init__(self, messages: Iterable[Message] = (), system: str | None = None) -> None:
        """system: the text that replaces the header of the conversation."""
        self.messages: list[dict[str, Any]] = [dict(message) for message in messages]
        if system is not None:
            self.set_system(system)

    def set_system(self, text: str | None) -> None:
        """Replace the system messages by one, or by none: then the usual header stands."""
        head = [] if text is None else [{"role": "system", "content": text}]
        self.messages = head + self.messages[self._start() :]

    def add(self, message: Message, answer: str) -> None:
        """Take in a user's message and what was answered."""
        self.messages += [dict(message), {"role": "assistant", "content": answer}]

    def undo(self) -> dict[str, Any] | None:
        """Take back the last user's message and all behind it; returns that message, if there was one."""
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index].get("role") == "user":
                message = self.messages[index]
                del self.messages[index:]
                return message
        return None

    def clear(self) -> None:
        """Forget all but the system messages."""
        del self.messages[self._start() :]

    def save(self, path: str | Path, *, embed: bool = False) -> None:
        """Write the file, whole or not at all. embed: pictures that came as paths go into it too."""
        save_messages(self.messages, path, embed=embed)

    @classmethod
    def load(cls, path: str | Path) -> Conversation:
        """Read what `save` wrote, or a list of messages; DataError says what does not fit."""
        return cls(load_messages(path))

    def _start(self) -> int:
        """Where the turns begin, behind the system messages."""
        for index, message in enumerate(self.messages):
            if message.get("role") not in ("system", "developer"):
                return index
        return len(self.messages)


def user_message(text: str, images: Sequence[object] = ()) -> dict[str, Any]:
    """A user's message with its pictures and videos (video.Video) in front; each is brought into a form that
    can be read again."""
    if not images:
        return {"role": "user", "content": text}
    parts = [_part(image) for image in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}] if text else parts}


def _part(image: object) -> dict[str, Any]:
    if isinstance(image, Video):
        return {"type": "video", "video": _keep_video(image.source), "num_frames": image.num_frames}
    return {"type": "image", "image": keep_picture(image)}


def keep_picture(source: object) -> object:
    """The picture as an absolute path, URL, bytes or PIL image of its own: nothing that is used up by reading
    it, changes with the working folder, or is changed by its owner later."""
    if isinstance(source, str | os.PathLike):
        text = os.fspath(source)
        return text if str(text).startswith(REMOTE) else os.path.abspath(text)
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    picture = load_image(source)
    return picture.copy() if picture is source else picture


def _keep_video(source: object) -> object:
    """As keep_picture; frames in an array or tensor stay their owner's."""
    if isinstance(source, list | tuple):
        return [keep_picture(frame) for frame in source]
    if hasattr(source, "read"):
        return read_video(source)
    return keep_picture(source) if isinstance(source, str | os.PathLike) else source


def save_messages(messages: Sequence[Message], path: str | Path, *, embed: bool = False) -> None:
    """Conversation.save for any messages; PromptError names a part that has no form in JSON."""
    path = Path(path)
    raw = {"messages": [_portable_message(message, embed) for message in messages]}
    try:
        text = json.dumps(raw, indent=1, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise PromptError(f"the conversation cannot be written as JSON ({error})") from None
    partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}.partial")
    try:
        # A lone surrogate has no UTF-8 form: it becomes an escape such as \ud83e, which JSON reads back.
        partial.write_bytes(text.encode("utf-8", "backslashreplace") + b"\n")
        partial.replace(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be written ({reason_of(error)})") from None
    finally:
        with contextlib.suppress(OSError, ValueError):
            partial.unlink(missing_ok=True)


def load_messages(path: str | Path) -> list[dict[str, Any]]:
    """Conversation.load as a plain list."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({reason_of(error)})") from None
    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"{path}: more than {MAX_FILE_BYTES >> 20} MiB; no conversation is that long")
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError):
        raise DataError(f"{path}: not readable as JSON") from None
    messages = raw.get("messages") if isinstance(raw, dict) else raw
    if not isinstance(messages, list):
        raise DataError(f'{path}: wanted {{"messages": [...]}} or a list of messages')
    try:
        check_messages(messages)
    except PromptError as error:
        raise DataError(f"{path}: {error}") from None
    return [_with_parts(message, lambda part: _anchored(part, path.parent)) for message in messages]


def picture_uri(source: object) -> str:
    """A picture as text: data URIs, bytes and files as they are, anything else as PNG.

    What a PNG cannot hold becomes RGB; a PNG too large to be read back is made smaller by halves.
    """
    picture = load_image(source)
    if isinstance(source, str) and source.startswith("data:"):
        return source
    if isinstance(source, str | os.PathLike):
        source = Path(source).read_bytes()
    if isinstance(source, bytes):
        return _data_uri(source, str(picture.format).lower())
    try:
        picture = picture if picture.mode in PNG_MODES else picture.convert("RGB")
        while len(data := _png(picture)) > MAX_BYTES:
            picture = picture.convert("RGB").reduce(2)
    except (ValueError, OSError):
        raise ImageError(f"a picture of mode {picture.mode} cannot be saved; convert it to RGB") from None
    return _data_uri(data, "png")


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _with_parts(message: Message, change: Callable[[Any], Any]) -> dict[str, Any]:
    """A copy of the message with `change` made to each of its parts."""
    content = message.get("content")
    if isinstance(content, str) or not isinstance(content, Sequence):
        return dict(message)
    return {**message, "content": [change(part) for part in content]}


def _portable_message(message: Message, embed: bool) -> dict[str, Any]:
    return _with_parts(message, lambda part: _portable(part, embed))


def _portable(part: Any, embed: bool) -> Any:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "video":
        return {**part, "video": _portable_video(part.get("video"))}
    if kind != "image":
        return part
    source = keep_picture(part.get("image"))
    if isinstance(source, str) and not source.startswith(REMOTE) and not embed:
        return {**part, "image": source}
    # What a URL names is not fetched for a file.
    remote = isinstance(source, str) and source.startswith(("http:", "https:"))
    return {"type": "image_url", "image_url": {"url": source if remote else picture_uri(source)}}


def _portable_video(source: object) -> object:
    kept = _keep_video(source)
    if not all(isinstance(path, str) for path in (kept if isinstance(kept, list) else [kept])):
        raise PromptError(
            f"a video that came as a {type(source).__name__} cannot be saved; pass its path, or those of its "
            "frames"
        )
    return kept


def _anchored(part: Any, folder: Path) -> Any:
    """Relative paths made absolute."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in ("image", "video"):
        return part
    source = part.get(kind)
    paths = [_anchored_path(path, folder) for path in (source if isinstance(source, list) else [source])]
    return {**part, kind: paths if isinstance(source, list) else paths[0]}


def _anchored_path(path: Any, folder: Path) -> Any:
    remote = isinstance(path, str) and path.startswith(REMOTE)
    return os.path.abspath(folder / path) if isinstance(path, str) and not remote else path
