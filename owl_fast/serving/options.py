"""Options of the server as people write them, for the command and for Ray's."""

from __future__ import annotations

import os
from collections.abc import Iterable

from owl_fast.errors import ParameterError

VARIABLE = "OWL_API_KEY"
LEAST_KEY = 16  # characters


def read_keys(text: str, source: str) -> list[str]:
    """One a line. source: what the text is called. ParameterError, which does not say what a key is."""
    keys = [line.strip() for line in text.splitlines() if line.strip()]
    if not keys or any(len(key) < LEAST_KEY for key in keys):
        raise ParameterError(f"{source}: wanted keys of at least {LEAST_KEY} characters, one a line")
    if not all(33 <= ord(letter) <= 126 for key in keys for letter in key):
        raise ParameterError(f"{source}: a key has a character that no header can carry")
    return keys


def environment_keys() -> list[str]:
    """Of the variable OWL_API_KEY, none when it is not set; ParameterError."""
    text = os.environ.get(VARIABLE)
    return [] if text is None else read_keys(text, VARIABLE)


def read_list(text: str | None) -> list[str]:
    """What stands between commas."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def read_adapters(texts: Iterable[str]) -> dict[str, str]:
    """Name -> folder, of NAME=DIR; ParameterError."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder) or name in found:
            raise ParameterError(f"adapter {text!r:.200}: wanted NAME=DIR, each name once")
        found[name] = folder
    return found
