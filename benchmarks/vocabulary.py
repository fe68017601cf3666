"""Vocabularies for models of any size: every id has a text, so that every token of an answer shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from owl_fast.tokenizer import Tokenizer

NORMAL, BYTE = 1, 6  # kinds of pieces, in SentencePiece's files and in GGUF


def pieces(model: bytes) -> list[tuple[str, float, int]]:
    """Text, score and kind of every piece of a SentencePiece model."""
    return [(piece.piece, piece.score, piece.type) for piece in _read(model).pieces]


def filled(model: bytes, size: int) -> bytes:
    """The same model with pieces of no use behind its own, `size` in all."""
    whole = _read(model)
    lowest = min(piece.score for piece in whole.pieces)
    for index in range(len(whole.pieces), size):
        whole.pieces.add(piece=f"▁{index}", score=lowest - index, type=NORMAL)
    return bytes(whole.SerializeToString())


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


def _read(model: bytes) -> Any:
    from sentencepiece import sentencepiece_model_pb2  # needs protobuf, which comes with onnx

    found = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    found.ParseFromString(model)
    return found
