"""How each contender looks, the same in every figure of a page: ours strong, peers muted and told apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.steps import OURS

# Of each family the words that its names have, and the colours its members take in turn. They are read on
# white and on dark grey alike. The first family whose word is in a name has it.
FAMILIES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    ((OURS,), ("#e8590c", "#e9a820", "#c2255c", "#b5763f", "#f0a37a", "#b08900", "#d46a9f")),
    (("llama.cpp",), ("#5c7fb0", "#8aa5cb", "#47679a", "#a3b6d2")),
    (("transformers", "peft"), ("#8d6fae", "#ab94c4", "#745896", "#bca9d0")),
    (("ONNX",), ("#b0698c", "#c793ac")),
    (("torch", "flash"), ("#5f9183", "#86ada2", "#47766a", "#9dbdb4")),
    (("",), ("#8b8b86", "#a9a9a4", "#71716c")),
)
# matplotlib's marker and the sign that stands for it in a text
MARKERS = (
    ("o", "●"),
    ("s", "■"),
    ("^", "▲"),
    ("D", "◆"),
    ("v", "▼"),
    ("P", "✚"),
    ("X", "✖"),
    ("<", "◀"),
    (">", "▶"),
)


@dataclass(frozen=True)
class Style:
    """ours: owl_fast, or one of its variants. sign: of the marker in a text."""

    name: str
    color: str
    marker: str
    sign: str
    ours: bool


def styles(contenders: Iterable[str]) -> dict[str, Style]:
    """Of every name; those of a family differ in colour, in marker or both."""
    taken: Counter[int] = Counter()
    found: dict[str, Style] = {}
    for name in dict.fromkeys([OURS, *contenders]):
        family = next(i for i, (words, _) in enumerate(FAMILIES) if any(word in name for word in words))
        place, colors = taken[family], FAMILIES[family][1]
        taken[family] += 1
        if family == 0 and place:  # nothing else looks like owl_fast itself
            colors = colors[1:]
        marker, sign = MARKERS[place % len(MARKERS)]
        found[name] = Style(name, colors[place % len(colors)], marker, sign, name.startswith(OURS))
    return found
