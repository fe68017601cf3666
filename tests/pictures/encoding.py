"""Pictures to begin with, the means to encode odd ones, and the reference they are compared with."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from owl_fast.images import CLIP_MEAN, CLIP_STD, RESCALE

SIDE = 24
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def reference(data: bytes, side: int = SIDE) -> Tensor:
    """The original's preprocessing in numpy: resized in the picture's own mode, then RGB, then normalised."""
    image = Image.open(io.BytesIO(data)).resize((side, side), Image.Resampling.BICUBIC).convert("RGB")
    scaled = (np.asarray(image).astype(np.float64) * RESCALE).astype(np.float32)
    normal = (scaled - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_STD, np.float32)
    return torch.from_numpy(normal.transpose(2, 0, 1).copy())


# --- encoding ---------------------------------------------------------------------------------------------


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@functools.cache
def picture(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    """Noise with smooth parts."""
    bands = [
        Image.effect_noise(size, 60 + 20 * i).point(lambda v, i=i: (v * (i + 3)) // 4)
        for i in range(len(Image.new(mode, (1, 1)).getbands()))
    ]
    return Image.merge(mode, bands) if len(bands) > 1 else bands[0].convert(mode)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    return SIGNATURE + b"".join(chunk(*parts) for parts in chunks)


def header(
    width: int, height: int, depth: int = 8, color: int = 2, interlace: int = 0
) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlace)


def png_of(rows: np.ndarray, depth: int, color: int, *before: tuple[bytes, bytes]) -> bytes:
    """rows: (height, bytes per row) of packed samples; the width is that of the whole bytes."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    width = rows.shape[1] * 8 // (depth * channels)
    lines = b"".join(b"\0" + row.tobytes() for row in rows.astype(np.uint8))
    head = header(width, len(rows), depth, color)
    return png(head, *before, (b"IDAT", zlib.compress(lines)), (b"IEND", b""))


def interlaced(pixels: np.ndarray) -> bytes:
    """(height, width, 3) in the seven passes of Adam7."""
    passes = [
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ]
    lines = b"".join(
        b"\0" + row.tobytes() for x, y, dx, dy in passes for row in pixels[y::dy, x::dx] if row.size
    )
    head = header(pixels.shape[1], pixels.shape[0], interlace=1)
    return png(head, (b"IDAT", zlib.compress(lines)), (b"IEND", b""))


def bmp(
    width: int,
    height: int,
    body: bytes,
    depth: int = 24,
    compression: int = 0,
    colors: int = 0,
    head: int = 40,
    masks: bytes = b"",
) -> bytes:
    """A BMP with a grey palette of `colors`; head: bytes of its header, 12 for the oldest."""
    palette = b"".join(bytes([i * 255 // max(colors - 1, 1)] * 3 + [0]) for i in range(colors))
    if head == 12:
        info = struct.pack("<IHHHH", 12, width, abs(height), 1, depth)
        palette = b"".join(palette[i : i + 3] for i in range(0, len(palette), 4))
    else:
        info = struct.pack(
            "<IiiHHIIiiII", head, width, height, 1, depth, compression, len(body), 0, 0, colors, 0
        )
        info += masks.ljust(head - 40, b"\0") if head > 40 else masks
    start = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + info + palette + body


@functools.cache
def good(form: str) -> list[bytes]:
    """Good files of a format to begin with."""
    rgb, grey, more = picture(), picture("L"), picture(size=(40, 31)).crop((0, 0, 40, 30))
    palette = rgb.quantize(16)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x0132] = 6, "maker", "2020:01:01 00:00:00"
    if form == "PNG":
        return [
            saved(rgb, form),
            saved(palette, form, transparency=3),
            saved(picture("LA"), form),
            saved(grey.convert("I;16"), form),
            saved(rgb, form, exif=exif, icc_profile=b"profile" * 20),
            saved(rgb, form, save_all=True, append_images=[more]),
            interlaced(np.asarray(rgb)),
        ]
    if form == "JPEG":
        return [
            saved(rgb, form),
            saved(rgb, form, progressive=True),
            saved(picture("CMYK"), form),
            saved(grey, form, restart_marker_blocks=2),
            saved(rgb, form, exif=exif, icc_profile=b"profile" * 20, comment=b"said"),
            saved(rgb, "MPO", save_all=True, append_images=[more]),
        ]
    if form == "WEBP":
        return [
            saved(rgb, form),
            saved(rgb, form, lossless=True),
            saved(picture("RGBA"), form, exif=exif),
            saved(rgb, form, save_all=True, append_images=[more]),
        ]
    if form == "GIF":
        return [
            saved(palette, form),
            saved(palette, form, transparency=2, interlace=0),
            saved(palette, form, save_all=True, append_images=[more.quantize(8)], comment=b"said"),
        ]
    rle = b"\x14\x05\x14\x09\0\0" * 29 + b"\0\x03abc\0\x25\x07\0\1"
    return [
        saved(rgb, form),
        saved(palette, form),
        saved(rgb.convert("1"), form),
        bmp(40, 30, rle, 8, 1, 256),
    ]
