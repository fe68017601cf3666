"""What people may type, and how a reader finds the turns of a prompt again."""

from __future__ import annotations

import re
from itertools import takewhile
from typing import Any
from unicodedata import category

from hypothesis import strategies as st

from owl_fast.prompts import ImagePiece, Piece

MARKERS = [
    "Human:",
    "AI:",
    "AI: ",
    "Human",
    ":",
    "<image>",
    "</s>",
    "<s>",
    "<unk>",
    "<0x0A>",
    "<|video|>",
    "[INST]",
]
LINES = ["\n", "\r", "\r\n", "\v", "\f", "\x1c", "\x1e", "\x85", "\u2028", "\u2029"]
INVISIBLE = [
    *("\u200b", "\u200d", "\u00ad", "\ufeff", "\u2060", "\u202e", "\ufe0f", "\ufff9", "\U000e0041"),
    *("\u115f", "\u2800", "\u3164", "\u17b5", "\u180b", "\U0001d173", "\U000e0100"),
    *("\x08", "\x7f", "\u0307"),
]
OTHER = [
    "\x00",
    "\x02",
    "\ue000",
    " ",
    "\t",
    "▁",
    "x",
    "é",
    "🦉",
    "\ud83e",
    "\udd89",
    "Ｈｕｍａｎ：",
    "ＡＩ：",
    "＜image＞",
    "Нuman:",
]

# Text of every plane, the words of the templates in any neighbourhood, and control characters.
TYPED = st.one_of(
    st.text(max_size=30),
    st.lists(st.sampled_from(MARKERS + LINES + INVISIBLE + OTHER), max_size=12).map("".join),
    st.text(st.characters(categories=["Cs", "Cc", "Cf", "Zl", "Zp", "Lu"]), max_size=8),
    st.tuples(st.sampled_from(MARKERS + LINES + INVISIBLE + OTHER), st.integers(1, 400)).map(
        lambda p: p[0] * p[1]
    ),
)


def image(source: object = "x.png") -> dict[str, Any]:
    return {"type": "image", "image": source}


def text(typed: str) -> dict[str, Any]:
    return {"type": "text", "text": typed}


PARTS = st.lists(st.one_of(TYPED.map(text), st.just(image())), max_size=5)
TURNS = st.lists(st.tuples(st.one_of(TYPED, PARTS), TYPED), max_size=3)

Turn = tuple[str, str | None]  # role and text, None for a picture


def written(pieces: list[Piece]) -> str:
    return "".join("<image>" if isinstance(piece, ImagePiece) else piece.text for piece in pieces)


def expected_lines(content: str | list[dict[str, Any]]) -> list[str | None]:
    """The "Human: " lines that a user message becomes: None for a picture, else its text."""
    if isinstance(content, str):
        return [content]
    lines: list[str | None] = []
    rest = list(content)
    while rest:
        texts = [part["text"] for part in takewhile(lambda part: part["type"] == "text", rest)]
        if texts:
            lines.append("\n".join(texts))
            rest = rest[len(texts) :]
        else:
            lines.append(None)
            rest = rest[1:]
    return [line for line in lines if line != ""] if None in lines else lines or [""]


def visible(prompt: str) -> str:
    """Without what has no width or no ink, or stands on another character."""
    kept = "\t\n\r\v\f\x1c\x1d\x1e\x85"
    hidden = re.compile("C[cfn]|M[en]")
    return "".join(
        letter
        for letter in prompt
        if letter in kept
        or not (hidden.match(category(letter)) or letter in "\u115f\u1160\u2800\u3164\uffa0")
    )


def found_turns(prompt: str, place: str) -> list[Turn]:
    """Turns as a reader finds them who does not see invisible characters: a line that begins with a marker
    opens one. place: how a picture is written, a character that stands for nothing else."""
    found: list[tuple[str, list[str]]] = []
    for line in re.split("(?<=[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029])", visible(prompt)):
        mark = re.match("(Human|AI): ?", line)
        if mark:
            found.append((mark[1], [line[mark.end() :]]))
        elif found:
            found[-1][1].append(line)
    pictures = (place, f"{place}\n")
    return [(role, None if "".join(words) in pictures else "".join(words)) for role, words in found]


def unguarded(typed: str) -> str:
    """Without the space before a marker that begins a line."""
    return re.sub("(^|[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]) (?=(Human|AI):)", r"\1", typed)
