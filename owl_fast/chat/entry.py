'''How an entry is typed, whatever reads it: the prompt and the block of several lines in """.'''

from __future__ import annotations

PROMPT = ">>> "
CONTINUATION = "... "
QUOTES = '"""'


def in_block(text: str) -> bool:
    """Whether a block was begun and not ended, so that Enter only ends the line."""
    rest = text.lstrip()
    return rest.startswith(QUOTES) and QUOTES not in rest[len(QUOTES) :]


def block(entry: str) -> str | None:
    """What stands inside a block; None when the entry is none."""
    text = entry.strip()
    if len(text) < 2 * len(QUOTES) or not (text.startswith(QUOTES) and text.endswith(QUOTES)):
        return None
    return text[len(QUOTES) : -len(QUOTES)].strip("\n")
