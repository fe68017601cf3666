"""Encoded pictures: what is read, what is refused, and how one becomes the square the model looks at.

Nothing here needs torch, so that a process that only decodes is small (serving/picture_process.py).
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import stat
from pathlib import Path

from PIL import Image

from owl_fast.errors import ImageError
from owl_fast.picture_parts import parts_trouble

# Named, so that Pillow never tries a format that runs other programs or nobody asked for.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_BYTES = 8 << 20  # encoded
MAX_PIXELS = 16_000_000
MAX_SIDE = 8192


def picture_bytes(source: bytes | bytearray | memoryview | str | os.PathLike[str]) -> bytes:
    """An encoded picture as it is: of bytes, a data URI or a path. ImageError when it cannot be read."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, str) and source.startswith("data:"):
        return data_uri_bytes(source)
    if isinstance(source, str) and source.startswith(("http:", "https:")):
        raise ImageError("a URL came where a picture was wanted; download it and pass the path or the bytes")
    return _read_file(source)


def decode(data: bytes, label: str, pixels: bool = True) -> Image.Image:
    """An encoded picture in its own mode, first frame. label: what it is called in an ImageError."""
    if len(data) > MAX_BYTES:
        raise ImageError(f"{label}: more than {MAX_BYTES >> 20} MiB; make the picture smaller")
    if trouble := parts_trouble(data):
        raise ImageError(f"{label}: {trouble}; save it anew")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ImageError(f"{label}: more than {MAX_PIXELS} pixels; scale it down") from None
    # Pillow's decoders raise a dozen unrelated types, with memory addresses in the text: one message for all.
    except Exception:
        raise ImageError(f"{label}: no readable PNG, JPEG, WEBP, GIF or BMP picture") from None
    return load(image, label, pixels)


def load(image: Image.Image, label: str, pixels: bool = True) -> Image.Image:
    """Check the size its header declares, then decode the pixels if they are wanted."""
    check_size(image.width, image.height, label)
    try:
        if pixels:
            image.load()
    except Exception:
        raise ImageError(f"{label}: the picture is broken or cut off; save it anew") from None
    return image


def check_size(width: int, height: int, label: str) -> None:
    """ImageError unless a picture of this size may be decoded."""
    if width < 1 or height < 1:
        raise ImageError(f"{label}: {width} x {height} pixels; wanted at least 1 x 1")
    if width > MAX_SIDE or height > MAX_SIDE or width * height > MAX_PIXELS:
        raise ImageError(
            f"{label}: {width} x {height} pixels; at most {MAX_SIDE} a side and {MAX_PIXELS} in all, "
            "scale it down"
        )


def data_uri_bytes(uri: str) -> bytes:
    """What a data URI holds, strictly base64. ImageError for anything else, or more than MAX_BYTES."""
    head, comma, payload = uri[:256].partition(",")
    if not comma or not head.endswith(";base64"):
        raise ImageError("data URI: wanted data:image/...;base64,...")
    payload = uri[len(head) + 1 :]
    if len(payload) > MAX_BYTES // 3 * 4 + 8:
        raise ImageError(f"data URI: more than {MAX_BYTES >> 20} MiB; make the picture smaller")
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        raise ImageError("data URI: what follows the comma is not base64") from None


def _read_file(source: str | os.PathLike[str]) -> bytes:
    name = f"{str(source)!r:.200}"
    try:
        path = Path(source)
        if not stat.S_ISREG(path.stat().st_mode):
            raise ImageError(f"{name}: not a regular file")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name}: cannot be read") from None


# --- the square -------------------------------------------------------------------------------------------


def square(image: Image.Image, size: int, rgb_first: bool = False, crop: bool = False) -> Image.Image:
    """RGB (size, size), resized in the picture's own mode unless rgb_first. crop: the shorter side is scaled
    and the middle cut out; otherwise the picture is squeezed. Such a square comes out as it is. ImageError:
    modes without a way to RGB."""
    return rgb(_resized(rgb(image) if rgb_first else image, size, crop))


def rgb(image: Image.Image) -> Image.Image:
    try:
        return image.convert("RGB")
    except (ValueError, OSError):
        raise ImageError(f"pictures of mode {image.mode} have no RGB form here; convert it to RGB") from None


def _resized(image: Image.Image, size: int, crop: bool) -> Image.Image:
    try:
        if crop:
            return _middle(image, size)
        return image.resize((size, size), Image.Resampling.BICUBIC)
    except (ValueError, OSError):
        raise ImageError(f"pictures of mode {image.mode} cannot be resized; convert it to RGB") from None


def _middle(image: Image.Image, size: int) -> Image.Image:
    """The shorter side scaled to `size`, the longer one in proportion, then the middle size x size pixels."""
    short = min(image.size)
    width, height = (int(size * side / short) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    if width * height <= MAX_PIXELS:
        whole = image.resize((width, height), Image.Resampling.BICUBIC)
        return whole.crop((left, top, left + size, top + size))
    # A ribbon: the same without its ends in memory; roundings between the two passes may differ.
    across, down = image.width / width, image.height / height
    box = (left * across, top * down, (left + size) * across, (top + size) * down)
    return image.resize((size, size), Image.Resampling.BICUBIC, box)
