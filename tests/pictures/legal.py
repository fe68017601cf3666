"""Odd pictures that are right, and small files that ask for too much."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from PIL import Image

from owl_fast.images import load_image
from owl_fast.picture_files import MAX_BYTES
from tests.pictures.encoding import (
    bmp,
    chunk,
    good,
    header,
    interlaced,
    picture,
    png,
    png_of,
    saved,
)


def oddities() -> dict[str, bytes]:
    """At least 40 kinds a strict decoder may stumble over."""
    rgb, grey, rgba = picture(), picture("L"), picture("RGBA")
    palette, rows = rgb.quantize(16), np.asarray(rgb)
    found = {
        **{f"PNG grey {d} bit": png_of(_samples(d), d, 0) for d in (1, 2, 4, 8, 16)},
        **{f"PNG {name} {d} bit": png_of(_samples(d * n), d, c) for name, c, n in _COLORS for d in (8, 16)},
        **{f"PNG palette {d} bit": png_of(_samples(d), d, 3, _palette(d)) for d in (1, 2, 4, 8)},
        "PNG palette with clear colors": png_of(_samples(4), 4, 3, _palette(4), (b"tRNS", bytes(range(9)))),
        "PNG grey with a clear level": png_of(_samples(8), 8, 0, (b"tRNS", b"\0\x40")),
        "PNG with a clear color": png_of(_samples(24), 8, 2, (b"tRNS", bytes(6))),
        "PNG with a gamma": png_of(_samples(24), 8, 2, (b"gAMA", struct.pack(">I", 45_455))),
        "PNG interlaced": interlaced(rows),
        "PNG interlaced, 3 x 2": interlaced(rows[:2, :3]),
        "PNG animated": saved(rgb, "PNG", save_all=True, append_images=[Image.new("RGB", (40, 30))]),
        "PNG data in many chunks": _many_data_chunks(rows),
        "JPEG grey": saved(grey, "JPEG"),
        "JPEG CMYK": saved(picture("CMYK"), "JPEG"),
        "JPEG progressive": saved(rgb, "JPEG", progressive=True),
        "JPEG of the lowest quality": saved(rgb, "JPEG", quality=1),
        "JPEG of the highest quality": saved(rgb, "JPEG", quality=100, subsampling=0),
        **{f"JPEG subsampled {s}": saved(rgb, "JPEG", subsampling=s) for s in (1, 2)},
        "JPEG with restarts": saved(rgb, "JPEG", restart_marker_blocks=1),
        "JPEG in RGB": saved(rgb, "JPEG", keep_rgb=True),
        **{f"JPEG turned {i}": saved(rgb, "JPEG", exif=_turned(i)) for i in range(10)},
        "JPEG of two pictures": saved(rgb, "MPO", save_all=True, append_images=[grey.convert("RGB")]),
        "JPEG with words behind": saved(rgb, "JPEG") + b"\xff\xda" * 100,
        "WEBP": saved(rgb, "WEBP"),
        "WEBP lossless": saved(rgba, "WEBP", lossless=True),
        "WEBP clear": saved(rgba, "WEBP"),
        "WEBP animated": saved(rgb, "WEBP", save_all=True, append_images=[grey.convert("RGB")]),
        "GIF": saved(palette, "GIF"),
        "GIF with a clear color": saved(palette, "GIF", transparency=1),
        "GIF in rows": saved(palette, "GIF", interlace=0),
        "GIF animated": saved(palette, "GIF", save_all=True, append_images=[rgb.quantize(4)]),
        "GIF frame inside its screen": _small_frame(saved(palette, "GIF")),
        "BMP": saved(rgb, "BMP"),
        "BMP 1 bit": saved(rgb.convert("1"), "BMP"),
        "BMP palette": saved(palette, "BMP"),
        "BMP of four bits": bmp(40, 30, bytes(range(20)) * 30, 4, colors=16),
        "BMP of 16 bits": bmp(40, 30, bytes(range(80)) * 30, 16),
        "BMP of 32 bits": bmp(40, 30, bytes(range(160)) * 30, 32),
        "BMP from the top": bmp(40, -30, bytes(range(120)) * 30),
        "BMP of old": bmp(40, 30, bytes(range(120)) * 30, head=12),
        "BMP with runs": bmp(40, 30, b"\x14\x05\x14\x09\0\0" * 30 + b"\0\1", 8, 1, 256),
        **{
            f"PNG {w} x {h}": saved(rgb.resize((w, h)), "PNG")
            for w, h in ((1, 1), (1, 300), (300, 1), (3, 90))
        },
        "JPEG 1 x 1": saved(rgb.resize((1, 1)), "JPEG"),
        "WEBP 1 x 1": saved(rgb.resize((1, 1)), "WEBP"),
        "GIF 1 x 1": saved(palette.resize((1, 1)), "GIF"),
    }
    return found


_COLORS = (("color", 2, 3), ("grey and alpha", 4, 2), ("color and alpha", 6, 4))


def _samples(bits: int) -> np.ndarray:
    """16 rows of 16 pixels of this many bits."""
    return np.random.default_rng(bits).integers(0, 256, (16, 16 * bits // 8), np.uint8)


def _palette(depth: int) -> tuple[bytes, bytes]:
    return b"PLTE", np.random.default_rng(depth).bytes(3 << depth)


def _turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _many_data_chunks(rows: np.ndarray) -> bytes:
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    data = [(b"IDAT", packed[i : i + 1]) for i in range(len(packed))]
    return png(header(rows.shape[1], rows.shape[0]), *data, (b"IEND", b""))


def _small_frame(gif: bytes) -> bytes:
    """The same frame on a larger screen, away from its corner."""
    frame = gif.index(b",", 13 + 3 * (2 << (gif[10] & 7)))
    place = struct.pack("<HH", 7, 5)
    return gif[:6] + struct.pack("<HH", 60, 50) + gif[10 : frame + 1] + place + gif[frame + 5 :]


def twins() -> dict[str, tuple[bytes, bytes]]:
    """An odd and a plain file of the same picture."""
    rgb = picture()
    body = bytes(range(120)) * 30
    upside_down = b"".join(body[i : i + 120] for i in range(0, len(body), 120))[::-1]
    turned = b"".join(upside_down[i : i + 120][::-1] for i in range(0, len(body), 120))
    runs = b"\x14\x05\x14\x09\0\0" * 30 + b"\0\1"
    return {
        "interlaced": (interlaced(np.asarray(rgb)), saved(rgb, "PNG")),
        "data in many chunks": (_many_data_chunks(np.asarray(rgb)), saved(rgb, "PNG")),
        "restarts": (saved(rgb, "JPEG", restart_marker_blocks=1), saved(rgb, "JPEG")),
        "turned by EXIF, as the original": (saved(rgb, "JPEG", exif=_turned(6)), saved(rgb, "JPEG")),
        "first of two": (good("JPEG")[5], saved(rgb, "JPEG")),
        "first of an animation": (good("PNG")[5], saved(rgb, "PNG")),
        "from the top": (bmp(40, -30, turned), bmp(40, 30, body)),
        "with runs": (bmp(40, 30, runs, 8, 1, 256), bmp(40, 30, (b"\5" * 20 + b"\x09" * 20) * 30, 8, 0, 256)),
    }


# --- too much ---------------------------------------------------------------------------------------------


def load(path: str) -> object:
    """The size of the picture in a file."""
    return load_image(path).size


def _png_declaring(width: int, height: int, depth: int = 8, color: int = 2) -> bytes:
    return png(header(width, height, depth, color), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))


def _jpeg_declaring(width: int, height: int, progressive: bool = False) -> bytes:
    data = saved(picture(), "JPEG", progressive=progressive)
    at = data.index(b"\xff\xc2" if progressive else b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def _webp_declaring(side: int, lossless: bool) -> bytes:
    data = saved(picture(), "WEBP", lossless=lossless)
    if lossless:
        at = data.index(b"VP8L") + 9
        return data[:at] + struct.pack("<I", (side - 1) | (side - 1) << 14) + data[at + 4 :]
    at = data.index(b"\x9d\x01\x2a") + 3
    return data[:at] + struct.pack("<HH", side, side) + data[at + 4 :]


def _webp_canvas(side: int) -> bytes:
    data = good("WEBP")[3]
    at = data.index(b"VP8X") + 12
    return data[:at] + (side - 1).to_bytes(3, "little") * 2 + data[at + 6 :]


def _gif_declaring(side: int, frame: bool) -> bytes:
    data = good("GIF")[0]
    at = data.index(b",", 13 + 3 * (2 << (data[10] & 7))) + 5 if frame else 6
    return data[:at] + struct.pack("<HH", side, side) + data[at + 4 :]


def _png_stuffed(name: bytes, content: bytes, count: int) -> bytes:
    plain = saved(picture(), "PNG")
    return plain[:33] + chunk(name, content) * count + plain[33:]


def jpeg_scans(count: int) -> bytes:
    data = saved(picture(), "JPEG", progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + data[-2:]


def _jpeg_stuffed(segment: bytes, size: int) -> bytes:
    data = saved(picture(), "JPEG")
    return data[:2] + segment * (size // len(segment)) + data[2:]


LARGE = MAX_BYTES - 10_000
BOMBS = {
    "png 60,000 a side": lambda: _png_declaring(60_000, 60_000),
    "png 2^31 a side": lambda: _png_declaring(2**31 - 1, 2**31 - 1),
    "png 1 bit": lambda: _png_declaring(8192, 8192, 1, 0),
    "png 16 bit RGBA": lambda: _png_declaring(4001, 4000, 16, 6),
    "png wide": lambda: _png_declaring(8193, 1),
    "png high": lambda: _png_declaring(1, 2**31 - 1),
    "png real": lambda: saved(Image.new("1", (9000, 9000)), "PNG"),
    "jpeg 65,535 a side": lambda: _jpeg_declaring(65_535, 65_535),
    "jpeg progressive": lambda: _jpeg_declaring(65_535, 65_535, progressive=True),
    "jpeg just beyond": lambda: _jpeg_declaring(4001, 4000),
    "webp lossy": lambda: _webp_declaring(16_383, lossless=False),
    "webp lossless": lambda: _webp_declaring(16_384, lossless=True),
    "webp canvas": lambda: _webp_canvas(16_384),
    "gif screen": lambda: _gif_declaring(65_535, frame=False),
    "gif frame": lambda: _gif_declaring(65_535, frame=True),
    "bmp": lambda: bmp(30_000, 30_000, bytes(100)),
    "bmp runs": lambda: bmp(30_000, 30_000, b"\xff\0" * 100, 8, 1, 256),
    "bmp from the top": lambda: bmp(30_000, -30_000, bytes(100)),
    "encoded bytes": lambda: saved(picture(), "PNG") + bytes(MAX_BYTES),
    "png chunks": lambda: _png_stuffed(b"abCd", b"", LARGE // 12),
    "png empty data": lambda: _png_stuffed(b"IDAT", b"", LARGE // 12),
    "png profile": lambda: _png_stuffed(b"iCCP", b"k\0\0" + zlib.compress(bytes(50 << 20)), 1),
    "jpeg scans": lambda: jpeg_scans(65),
    "jpeg run": lambda: b"\xff\xd8" + b"\xff" * LARGE,
    "jpeg segments": lambda: _jpeg_stuffed(b"\xff\xe9\0\2", LARGE),
    "jpeg comments": lambda: _jpeg_stuffed(b"\xff\xfe\0\2", LARGE),
    "jpeg fill": lambda: _jpeg_stuffed(b"\xff", LARGE),
    "jpeg ends": lambda: _jpeg_stuffed(b"\xff\xd9\xff\xe9\0\2", LARGE),
    "jpeg hidden": lambda: _jpeg_stuffed(b"\xff\xf0\xff\xff\xff\xe9\0\2", LARGE),
}
