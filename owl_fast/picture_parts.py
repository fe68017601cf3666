"""How many parts an encoded picture has: a few megabytes of tiny ones can cost minutes of decoding.

A JPEG's scans each pass over the whole picture; segments and chunks each cost a step in Python.
"""

from __future__ import annotations

import re

MAX_PARTS = 10_000  # libpng writes a chunk per 8 KiB
MAX_SCANS = 64  # the usual progressive JPEG has 10
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# Stuffed bytes and markers without a content (TEM, JPG, restarts, SOI, JPG0 to JPG13) are passed over.
_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xff\xc8\xd0-\xd8\xf0-\xfd])", re.DOTALL)
_SCAN, _END = b"\xda", b"\xd9"


def parts_trouble(data: bytes) -> str | None:
    """What is excessive about the structure of a PNG or JPEG; None if nothing, or for other formats."""
    if data.startswith(PNG_SIGNATURE):
        return _png_trouble(data)
    return _jpeg_trouble(data) if data.startswith(b"\xff\xd8") else None


def _png_trouble(data: bytes) -> str | None:
    """Chunks: length (4 bytes), name (4), content, checksum (4)."""
    at = len(PNG_SIGNATURE)
    for _ in range(MAX_PARTS):
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        if at >= len(data):
            return None
    return f"more than {MAX_PARTS} chunks"


def _jpeg_trouble(data: bytes) -> str | None:
    """Segments: marker, length with itself (2 bytes), content; behind a scan's come its coded numbers."""
    at, parts, scans = 2, 0, 0
    while marker := _JPEG_MARKER.search(data, at):
        # Before the first scan, what lies between segments is read byte by byte.
        parts += 1 if scans else 1 + marker.start() - at
        scans += marker[1] == _SCAN
        if parts > MAX_PARTS or scans > MAX_SCANS:
            return f"more than {MAX_PARTS} segments" if parts > MAX_PARTS else f"more than {MAX_SCANS} scans"
        at = marker.end()
        if marker[1] != _END:
            at += int.from_bytes(data[at : at + 2], "big")
        elif scans:
            break  # what comes behind the picture is never looked at
    return None if scans or len(data) - at <= MAX_PARTS else f"more than {MAX_PARTS} segments"
