"""Vocabularies for models of any size: every id has a text, so that every token of an answer shows."""

from __future__ import annotations

from collections.abc import Sequence

from sentencepiece import SentencePieceProcessor

from owl_fast.tokenizer import Tokenizer


def words(tokenizer: Tokenizer) -> list[str]:
    """Those that are one token each, alone and behind one another."""
    model = SentencePieceProcessor(model_proto=tokenizer.model_bytes)
    texts = [model.id_to_piece(index) for index in range(len(model))]
    found = [text[1:] for text in texts if text[:1] == "▁" and text[1:].isalpha()]
    return [word for word in found if len(tokenizer.encode(word, literal=True)) == 1]


def text_of(tokens: int, words: Sequence[str], index: int) -> str:
    """So many words, whose first two no other index has."""
    count = len(words)
    places = [index // count, index, *(index * 31 + place * 7 for place in range(tokens - 2))]
    return " ".join(words[place % count] for place in places[:tokens])
