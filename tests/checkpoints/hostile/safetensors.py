"""Safetensors files that someone made up."""

from __future__ import annotations

import json
import struct
from typing import Any

GOOD = bytes(range(16))  # four float32 numbers

Case = tuple[bytes, str]  # the file, and what the refusal says


def file(header: Any, data: bytes = GOOD) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: Any = (4,), dtype: Any = "F32", offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def headers() -> dict[str, Case]:
    good = file({"a": entry()})
    text = json.dumps(entry())
    return {
        "cut": (good[:-1], r"\d+ bytes; its tensors end at \d+ \(tensor a\)"),
        "bytes behind": (good + b"\0", r"\d+ bytes; its tensors end at \d+"),
        "seven bytes": (good[:7], "cut short: 7 bytes"),
        "header alone": (good[:-16], "its tensors end at"),
        "header longer than the file": (b"\xff\xff\0\0\0\0\0\0" + good[8:], "a header of 65535"),
        "endless header": (b"\xff" * 8 + good[8:], "cut short"),
        "huge header": (file(b" " * (5 << 20)), "a header of 5242880 bytes; at most"),
        "10^6 names": (
            file(b"{%s}" % b",".join(b'"t%06d":%s' % (i, text.encode()) for i in range(1_000_000))),
            "bytes; at most",
        ),
        "many lists": (file(b"[%s[]]" % (b"[]," * 1_300_000)), "header is a list"),
        "zip": (b"PK\3\4" + good, "cut short"),
        "text": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "cut short"),
        "no JSON": (file(b"{a:1}"), "header is damaged"),
        "no UTF-8": (file(b'{"\xff":1}'), "header is damaged"),
        "deep": (file(b'{"a":' + b"[" * 1_000_000), "header is damaged"),
        "long number": (file(b'{"a":%s}' % (b"9" * 1_000_000)), "header is damaged"),
        "list": (file(b"[]"), "header is a list"),
        "number": (file(b"7"), "header is a int"),
        "name twice": (file(f'{{"a":{text},"a":{text}}}'.encode()), "'a' is listed twice"),
        "field twice": (file(b'{"a":{"dtype":"F32","dtype":"F16"}}'), "'dtype' is listed twice"),
        "entry a list": (file({"a": [1]}), "tensor a has dtype None"),
        "no shape": (file({"a": {"dtype": "F32", "data_offsets": [0, 16]}}), "tensor a has no shape"),
        "no offsets": (file({"a": {"dtype": "F32", "shape": [4]}}), "tensor a has no shape or no place"),
        "one offset": (file({"a": entry(offsets=[16])}), "tensor a has no shape or no place"),
        "negative size": (file({"a": entry([-4])}), "tensor a has no shape"),
        "true as size": (file({"a": entry([True, 4])}), "tensor a has no shape"),
        "fraction as size": (file({"a": entry([4.0])}), "tensor a has no shape"),
        "endless numbers": (
            file({"a": entry([int("9" * 4300)], offsets=[0, int("9" * 4300)])}),
            "tensor a has no shape",
        ),
        "escape codes in a name": (file({"\x1b[2J": entry()}), r"named '\\x1b\[2J'; wanted printable"),
        "giant": (file({"a": entry([1 << 62, 1 << 62])}), "tensor a has 2 dimensions or more than"),
        "giant and empty": (file({"a": entry([0, 1 << 62], offsets=[0, 0])}, b""), "dimensions or more than"),
        "product of 2^64": (file({"a": entry([1 << 32, 1 << 32, 4])}), "dimensions or more than"),
        "10^5 dimensions": (file({"a": entry([1] * 100_000, offsets=[0, 4])}, GOOD[:4]), "100000 dimensions"),
        "shape and bytes differ": (file({"a": entry([5])}), r"tensor a has 16 bytes; .* takes 20"),
        "offsets reversed": (file({"a": entry(offsets=[16, 0])}), "tensor a has -16 bytes"),
        "offsets far away": (
            file({"a": entry(offsets=[1 << 62, (1 << 62) + 16])}),
            r"tensor a begins at byte \d+, the header ends",
        ),
        "hole": (file({"a": entry([3], offsets=[4, 16])}), "tensor a begins at byte"),
        "overlap": (file({"a": entry(), "b": entry()}), "tensor b begins at byte .*, tensor a ends"),
        "double": (file({"a": entry([2], "F64")}), "tensor a has dtype F64"),
        "bool": (file({"a": entry([16], "BOOL")}), "tensor a has dtype BOOL"),
        "float8": (file({"a": entry([16], "F8_E4M3")}), "tensor a has dtype F8_E4M3"),
        "complex": (file({"a": entry([2], "C64")}), "tensor a has dtype C64"),
        "unknown dtype": (file({"a": entry(dtype="F33")}), "tensor a has dtype F33"),
        "dtype a number": (file({"a": entry(dtype=32)}), "tensor a has dtype 32"),
        "dtype a list": (file({"a": entry(dtype=["F32"])}), "tensor a has dtype"),
    }
