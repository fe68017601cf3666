"""Vocabularies for models of any size: every id has a text, so that every token of an answer shows."""

from __future__ import annotations

from collections.abc import Sequence

from owl_fast.export.vocabulary import NORMAL, pieces
from owl_fast.tokenizer import Tokenizer


def words(tokenizer: Tokenizer) -> list[str]:
    """Those that are one token each, alone and behind one another."""
    found = [
        text[1:]
        for text, _, kind in pieces(tokenizer.model_bytes)
        if kind == NORMAL and text[:1] == "▁" and text[1:].isalpha()
    ]
    return [word for word in found if len(tokenizer.encode(word, literal=True)) == 1]


def text_of(tokens: int, words: Sequence[str], index: int) -> str:
    """So many words, whose first two no other index has."""
    count = len(words)
    places = [index // count, index, *(index * 31 + place * 7 for place in range(tokens - 2))]
    return " ".join(words[place % count] for place in places[:tokens])
