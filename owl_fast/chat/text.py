"""What may go to a terminal."""

from __future__ import annotations

import re

# Control characters but line end and tab, lone surrogates (no terminal can be sent them), and the marks that
# turn the direction of writing, with which a text can pretend to be another.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def safe(text: str) -> str:
    """Text that no terminal obeys: without escape sequences and other control characters."""
    return _UNSAFE.sub("", text)
