"""Malformed pictures of many kinds, each a pure function of its seed; read in tests/sandbox.py."""

from __future__ import annotations

import random
import struct
import warnings
import zlib
from collections.abc import Callable

import torch

from owl_fast.images import ImageProcessor
from tests.pictures.encoding import (
    FORMATS,
    SIDE,
    SIGNATURE,
    bmp,
    good,
    header,
    picture,
    png,
    reference,
    saved,
)

Make = Callable[[random.Random], bytes]

GOOD = "good"


def read(case: str) -> str:
    """Preprocess the picture "KIND|SEED", or all the good ones: what is read is what the reference reads."""
    warnings.simplefilter("ignore")
    files = [file for form in FORMATS for file in good(form)] if case == GOOD else [malformed(case)]
    for data in files:
        pixels = ImageProcessor(SIDE)(data)
        assert pixels.shape == (3, SIDE, SIDE)
        assert torch.equal(pixels, reference(data)), "not the reference's pixels"
    return f"{len(files)} read"


def malformed(case: str) -> bytes:
    return KINDS[case.partition("|")[0]](random.Random(case))


# --- malformed: any format --------------------------------------------------------------------------------


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flips(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def noise(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([20, 100])):
        changed[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(changed)


def front(data: bytes, rng: random.Random) -> bytes:
    """Odd numbers among the first bytes, where sizes and types stand."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 2, 4])):
        changed[rng.randrange(2, min(64, len(data)))] = rng.choice([0, 1, 0x7F, 0x80, 0xFE, 0xFF])
    return bytes(changed)


def zeros(data: bytes, rng: random.Random) -> bytes:
    at, count = rng.randrange(len(data)), rng.choice([1, 16, 300])
    return data[:at] + bytes(count) + data[at + count :]


def inserted(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + rng.randbytes(rng.choice([1, 2, 50])) + data[at:]


def removed(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + data[at + rng.choice([1, 2, 50]) :]


def repeated(data: bytes, rng: random.Random) -> bytes:
    start, end = sorted(rng.randrange(len(data)) for _ in range(2))
    return data[:end] + data[start:end] * rng.choice([1, 3, 50]) + data[end:]


def spliced(data: bytes, rng: random.Random) -> bytes:
    other = rng.choice(good(rng.choice(FORMATS)))
    return data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]


ANY = (cut, flips, noise, front, zeros, inserted, removed, repeated, spliced)
ODD = (0, 1, 2, 3, 7, 255, 256, 4095, 8193, 65_535, 65_536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


def odd_number(rng: random.Random, size: int, order: str) -> bytes:
    return (rng.choice([*ODD, rng.getrandbits(32)]) % 256**size).to_bytes(size, order)  # type: ignore[arg-type]


def overwritten(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


# --- malformed: PNG, with right checksums -----------------------------------------------------------------


def png_parts(data: bytes) -> list[tuple[bytes, bytes]]:
    parts, at = [], len(SIGNATURE)
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        parts.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return parts


def png_chunks(rng: random.Random) -> bytes:
    """Chunks lost, twice, in another order, or with another name."""
    parts = png_parts(rng.choice(good("PNG")))
    for _ in range(rng.choice([1, 3])):
        at = rng.randrange(len(parts))
        kind = rng.randrange(4)
        if kind == 0 and len(parts) > 1:
            del parts[at]
        elif kind == 1:
            parts.insert(rng.randrange(len(parts) + 1), parts[at])
        elif kind == 2:
            rng.shuffle(parts)
        else:
            parts[at] = rng.choice([b"IDAT", b"PLTE", b"fdAT", b"abcd", b"\0\0\0\0"]), parts[at][1]
    return png(*parts)


def png_header(rng: random.Random) -> bytes:
    parts = png_parts(rng.choice(good("PNG")))
    head = parts[0][1]
    for _ in range(rng.choice([1, 2])):
        field, size = rng.choice([(0, 4), (4, 4), (8, 1), (9, 1), (10, 1), (11, 1), (12, 1)])
        head = overwritten(head, field, odd_number(rng, size, "big"))
    return png((b"IHDR", head[: rng.choice([13, 13, 13, 12, 0])]), *parts[1:])


def png_data(rng: random.Random) -> bytes:
    """The packed rows too short, too long, with odd filters, packed wrongly, or none."""
    rows = b"".join(bytes([rng.choice([0, 1, 2, 3, 4, 5, 255])]) + rng.randbytes(120) for _ in range(30))
    packed = zlib.compress(rows)
    body = rng.choice(
        [
            *(packed, packed[:-4], packed[: len(packed) // 2], b"", b"\0", rng.randbytes(200)),
            *(zlib.compress(rows[:500]), zlib.compress(rows * 20), zlib.compress(b"")),
            *(packed + rng.randbytes(50), zlib.compress(rows)[2:-4], flips(packed, rng)),
        ]
    )
    half = rng.randrange(len(body) + 1)
    return png(header(40, 30), (b"IDAT", body[:half]), (b"IDAT", body[half:]), (b"IEND", b""))


def png_palette(rng: random.Random) -> bytes:
    depth = rng.choice([1, 2, 4, 8])
    rows = b"".join(b"\0" + rng.randbytes(5 * depth) for _ in range(30))
    colors = rng.randbytes(rng.choice([0, 1, 3, 5, 6, 48, 768, 771, 3000]))
    clear = rng.randbytes(rng.choice([0, 1, 16, 256, 257, 1000]))
    parts = [(b"PLTE", colors), (b"tRNS", clear), (b"bKGD", rng.randbytes(3)), (b"hIST", rng.randbytes(7))]
    rng.shuffle(parts)
    head, data = header(40, 30, depth, rng.choice([3, 3, 0, 2, 4])), (b"IDAT", zlib.compress(rows))
    return png(head, *parts[: rng.randrange(5)], data, (b"IEND", b""))


def png_notes(rng: random.Random) -> bytes:
    """Text, profiles, EXIF, time and sizes that say nonsense."""
    parts = png_parts(good("PNG")[0])
    many = zlib.compress(bytes(rng.choice([10, 10**6, 2 * 10**6])))
    notes = [
        *((b"tEXt", rng.randbytes(30)), (b"tEXt", b"k" * 90), (b"zTXt", b"k\0\0" + many)),
        *((b"zTXt", b"k\0\7" + many), (b"zTXt", b"k"), (b"iTXt", b"k\0\1\0en\0\xff\0" + many)),
        *((b"iTXt", b"k\0\1"), (b"iCCP", b"k\0\0" + many), (b"iCCP", b"k\0\0" + rng.randbytes(9))),
        *((b"eXIf", rng.randbytes(60)), (b"gAMA", b"\0"), (b"cHRM", rng.randbytes(31)), (b"pHYs", b"\0" * 8)),
        *(
            (b"sRGB", b""),
            (b"sBIT", rng.randbytes(9)),
            (b"tIME", b"\xff" * 7),
            (b"eXIf", b"MM\0*\0\0\0\x08\xff"),
        ),
    ]
    chosen = rng.sample(notes, rng.choice([1, 3, 8]))
    behind = rng.randrange(2)
    return png(parts[0], *chosen, *parts[1:-1], *(chosen if behind else []), parts[-1])


def png_animation(rng: random.Random) -> bytes:
    parts = png_parts(good("PNG")[5])
    at = rng.choice([i for i, (name, _) in enumerate(parts) if name in (b"acTL", b"fcTL", b"fdAT")])
    name, content = parts[at]
    field = rng.randrange(0, len(content) - 3, 4) if len(content) >= 4 else 0
    parts[at] = name, overwritten(content, field, odd_number(rng, 4, "big"))[: rng.choice([len(content), 3])]
    return png(*parts)


def png_lengths(rng: random.Random) -> bytes:
    data = rng.choice(good("PNG"))
    places, at = [], len(SIGNATURE)
    for _, content in png_parts(data):
        places.append(at)
        at += 12 + len(content)
    return overwritten(data, rng.choice(places), odd_number(rng, 4, "big"))


# --- malformed: JPEG --------------------------------------------------------------------------------------


def segments(data: bytes) -> list[tuple[int, int, int]]:
    """(marker, start, end) of the segments up to the first scan's head; start is behind the marker."""
    found, at = [], 2
    while data[at + 1] != 0xD9:
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        found.append((data[at + 1], at + 2, at + 2 + size))
        if data[at + 1] == 0xDA:
            break
        at += 2 + size
    return found


def jpeg_field(*markers: int) -> Make:
    """Odd numbers inside the segments of these markers."""

    def make(rng: random.Random) -> bytes:
        data = rng.choice([file for file in good("JPEG") if any(m in markers for m, _, _ in segments(file))])
        places = [(start, end) for marker, start, end in segments(data) if marker in markers]
        for _ in range(rng.choice([1, 2, 4])):
            start, end = rng.choice(places)
            data = overwritten(data, rng.randrange(start, end), odd_number(rng, 1, "big"))
        return data

    return make


def jpeg_order(rng: random.Random) -> bytes:
    data = rng.choice(good("JPEG"))
    found = segments(data)
    parts = [data[start - 2 : end] for _, start, end in found]
    for _ in range(rng.choice([1, 3])):
        at = rng.randrange(len(parts))
        parts.insert(rng.randrange(len(parts)), parts[at] if rng.random() < 0.5 else parts.pop(at))
    return data[:2] + b"".join(parts) + data[found[-1][2] :]


def jpeg_marker(rng: random.Random) -> bytes:
    """Another process than it has: lossless, hierarchical, arithmetic, or none."""
    data = rng.choice(good("JPEG"))
    start = next(start for marker, start, _ in segments(data) if marker in (0xC0, 0xC2))
    return overwritten(data, start - 1, bytes([rng.randrange(0xC0, 0xD0)]))


def jpeg_size(rng: random.Random) -> bytes:
    data = rng.choice(good("JPEG"))
    start = next(start for marker, start, _ in segments(data) if marker in (0xC0, 0xC2))
    return overwritten(data, start + rng.choice([3, 5]), odd_number(rng, 2, "big"))


def jpeg_scans(rng: random.Random) -> bytes:
    """The numbers of a scan damaged, the end missing, further scans."""
    data = good("JPEG")[rng.choice([0, 1, 3])]
    last = data.rindex(b"\xff\xda")
    kind = rng.randrange(4)
    if kind == 0:
        return data[:last] + flips(data[last:], rng)
    if kind == 1:
        return data[:-2]
    if kind == 2:
        return data[:-2] + data[last:-2] * rng.choice([1, 5, 100]) + data[-2:]
    return data[: last + 20] + b"\xff" * rng.choice([1, 5, 1000]) + data[last + 20 :]


# --- malformed: WebP --------------------------------------------------------------------------------------


def webp_chunks(rng: random.Random) -> bytes:
    data = rng.choice(good("WEBP"))
    parts, at = [], 12
    while at < len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        parts.append(data[at : at + 8 + size + size % 2])
        at += 8 + size + size % 2
    at = rng.randrange(len(parts))
    kind = rng.randrange(4)
    if kind == 0:
        del parts[at]
    elif kind == 1:
        parts.insert(0, parts[at])
    elif kind == 2:
        rng.shuffle(parts)
    else:
        parts[at] = rng.choice([b"VP8 ", b"VP8L", b"ALPH", b"ANMF", b"VP8X", b"abcd"]) + parts[at][4:]
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_field(rng: random.Random) -> bytes:
    """Odd numbers in the heads of chunks: lengths, flags, canvas, frames."""
    data = rng.choice(good("WEBP"))
    places = [i for name in (b"RIFF", b"VP8", b"ALPH", b"ANIM", b"ANMF") for i in _places(data, name)]
    for _ in range(rng.choice([1, 2])):
        at = rng.choice(places) + rng.randrange(4, 24)
        data = overwritten(data, at, odd_number(rng, rng.choice([1, 3, 4]), "little"))
    return data


def _places(data: bytes, name: bytes) -> list[int]:
    return [i for i in range(len(data)) if data.startswith(name, i)]


# --- malformed: GIF and BMP -------------------------------------------------------------------------------


def gif_field(rng: random.Random) -> bytes:
    """Screen, palette flags, frame position and size, code size, block lengths."""
    data = rng.choice(good("GIF"))
    palette = 3 * (2 << (data[10] & 7)) if data[10] & 0x80 else 0
    frame = data.index(b",", 13 + palette)
    at = rng.choice(
        [6, 8, 10, 11, 12, frame + 1, frame + 3, frame + 5, frame + 7, frame + 9, frame + 10, frame + 11]
    )
    return overwritten(data, at, odd_number(rng, rng.choice([1, 2]), "little"))


def gif_blocks(rng: random.Random) -> bytes:
    """Extensions that are cut, endless or unknown in front of the frame."""
    data = rng.choice(good("GIF"))
    at = 13 + (3 * (2 << (data[10] & 7)) if data[10] & 0x80 else 0)
    block = rng.choice(
        [
            *(
                b"\x21\xf9\x04" + rng.randbytes(4) + b"\0",
                b"\x21\xf9\x00",
                b"\x21\xf9\xff" + rng.randbytes(80),
            ),
            *(
                b"\x21\xfe\x05abcde" * 3,
                b"\x21\xfe" + b"\x01c" * 5000 + b"\0",
                b"\x21\xff\x0bNETSCAPE2.0\x01\x01\0",
            ),
            *(b"\x21\x00\0", b"\0" * 100, b";", b"\x21\xff\x0bNETSCAPE2.0", b"\x2c" + rng.randbytes(9)),
        ]
    )
    return data[:at] + block * rng.choice([1, 2, 50]) + data[at:]


def bmp_field(rng: random.Random) -> bytes:
    data = rng.choice(good("BMP"))
    field, size = rng.choice(
        [(10, 4), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2), (30, 4), (34, 4), (46, 4), (50, 4)]
    )
    value = rng.choice(
        [b"\x0c\0\0\0", b"\x7c\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x80", odd_number(rng, 4, "little")]
    )
    return overwritten(data, field, value[:size])


def bmp_depth(rng: random.Random) -> bytes:
    depth = rng.choice([0, 1, 2, 4, 8, 16, 24, 32, 64])
    return bmp(
        rng.choice([40, 1, 41]),
        rng.choice([30, -30, 1, 31]),
        rng.randbytes(rng.choice([0, 3600, 4800])),
        depth,
        rng.choice([0, 1, 2, 3, 4, 5, 6, 99]),
        rng.choice([0, 1, 2, 16, 256, 300]),
        rng.choice([12, 40, 52, 56, 64, 108, 124]),
        rng.randbytes(rng.choice([0, 12, 16])),
    )


def bmp_runs(rng: random.Random) -> bytes:
    """Run-length codes at random, with jumps beyond the picture."""
    codes = [
        b"\0\0",
        b"\0\1",
        b"\0\2\xff\xff",
        b"\0\2\1\1",
        b"\0\xff" + rng.randbytes(255),
        b"\xff\3",
        b"\5\5",
    ]
    body = b"".join(rng.choice(codes) for _ in range(rng.choice([0, 30, 2000])))
    return bmp(40, 30, body, rng.choice([4, 8]), rng.choice([1, 2]), 16)


# --- not pictures at all ----------------------------------------------------------------------------------


def other_format(rng: random.Random) -> bytes:
    name = rng.choice(["TIFF", "ICO", "PPM", "TGA", "PCX", "SGI", "PDF", "EPS", "DDS", "IM", "JPEG2000"])
    return saved(picture(), name)


def other_text(rng: random.Random) -> bytes:
    heads = [
        *(
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            b"%PDF-1.7\n",
            b"%!PS-Adobe-3.0 EPSF-3.0\n",
            b"8BPS\0\1",
        ),
        *(
            b"\0\0\0\x18ftypheic",
            b"\0\0\0\x0cjP  \r\n\x87\n",
            b"PK\3\4",
            b"\x1f\x8b\x08",
            b"SIMPLE  = T",
            b"MZ",
        ),
        *(b"<!DOCTYPE html>", b'{"a": 1}', b"GIF87a", b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBP", b"\xff\xd8\xff"),
    ]
    return rng.choice(heads) + rng.randbytes(rng.choice([0, 10, 2000]))


def tiny(rng: random.Random) -> bytes:
    return rng.choice(good(rng.choice(FORMATS)))[: rng.randrange(16)]


def random_bytes(rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice([1, 100, 10_000]))


def two_in_one(rng: random.Random) -> bytes:
    """One format's signature in front of another's file."""
    head = rng.choice([SIGNATURE, b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"RIFF"])
    return head + rng.choice(good(rng.choice(FORMATS)))


def _any_format(form: str, mutate: Callable[[bytes, random.Random], bytes]) -> Make:
    return lambda rng: mutate(rng.choice(good(form)), rng)


SOF, DHT, DQT, DRI, SOS = (0xC0, 0xC2), 0xC4, 0xDB, 0xDD, 0xDA
KINDS: dict[str, Make] = {
    **{f"{form} {mutate.__name__}": _any_format(form, mutate) for form in FORMATS for mutate in ANY},
    **{
        make.__name__.replace("_", " "): make
        for make in (
            *(png_chunks, png_header, png_data, png_palette, png_notes, png_animation, png_lengths),
            *(jpeg_order, jpeg_marker, jpeg_size, jpeg_scans, webp_chunks, webp_field),
            *(gif_field, gif_blocks, bmp_field, bmp_depth, bmp_runs),
            *(other_format, other_text, tiny, random_bytes, two_in_one),
        )
    },
    "jpeg frame": jpeg_field(*SOF),
    "jpeg codes": jpeg_field(DHT),
    "jpeg tables": jpeg_field(DQT),
    "jpeg restarts": jpeg_field(DRI),
    "jpeg scan head": jpeg_field(SOS),
    "jpeg exif": jpeg_field(0xE1),
    "jpeg pictures": jpeg_field(0xE2),
    "jpeg adobe": jpeg_field(0xEE),
}
