"""What is in a SentencePiece model, for formats that write the pieces themselves."""

from __future__ import annotations

from typing import Any, NamedTuple

from owl_fast.errors import UnsupportedError

# Kinds of pieces: the same numbers in SentencePiece's files and in GGUF.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
BPE = 2


class Piece(NamedTuple):
    text: str
    score: float
    kind: int


def pieces(model: bytes) -> list[Piece]:
    """Of every id."""
    return [Piece(piece.piece, piece.score, piece.type) for piece in _read(model).pieces]


def filled(model: bytes, size: int) -> bytes:
    """The same model with pieces of no use behind its own, `size` in all."""
    whole = _read(model)
    lowest = min(piece.score for piece in whole.pieces)
    for index in range(len(whole.pieces), size):
        whole.pieces.add(piece=f"▁{index}", score=lowest - index, type=NORMAL)
    return bytes(whole.SerializeToString())


def check_plain(model: bytes) -> None:
    """UnsupportedError unless text is cut as LLaMA does it, which is all that other formats can be told: byte
    pair encoding of the text as it is, behind one space."""
    whole = _read(model)
    rules, kind = whole.normalizer_spec, whole.trainer_spec.model_type
    odd = {
        "no byte pair encoding": kind != BPE,
        "it normalises characters": bool(rules.precompiled_charsmap),
        "it drops spaces": rules.remove_extra_whitespaces,
        "it puts no space in front": not (rules.add_dummy_prefix and rules.escape_whitespaces),
        "spaces end its words": whole.trainer_spec.treat_whitespace_as_suffix,
    }
    if found := [what for what, is_so in odd.items() if is_so]:
        raise UnsupportedError(
            f"tokenizer.model is not of LLaMA's kind ({', '.join(found)}); its texts would be cut otherwise"
        )


def _read(model: bytes) -> Any:
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError:
        raise UnsupportedError("protobuf: not installed; pip install '.[llm]' in the checkout") from None

    found = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    found.ParseFromString(model)
    return found
