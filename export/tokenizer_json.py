"""A SentencePiece model in the words of the tokenizers package, cutting text into the same ids.

Text is words, as everywhere; "<s>", "</s>" and "<unk>" in it are their ids unless the caller turns that off
(split_special_tokens), and what stands around them is cut on its own. BOS is put in front.
"""

from __future__ import annotations

import re
from typing import Any

from owl_fast.export.vocabulary import NORMAL, USER_DEFINED, Piece, check_plain, pieces
from owl_fast.tokenizer import Tokenizer

SPACE = "▁"


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of tokenizer.json; UnsupportedError for what is not of LLaMA's kind."""
    check_plain(tokenizer.model_bytes)
    known = pieces(tokenizer.model_bytes)
    whole = [piece.text for piece in known if piece.kind == USER_DEFINED]
    bos = known[tokenizer.bos_id].text
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special(known[i].text, i) for i in sorted(tokenizer.special_ids)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        "pre_tokenizer": _taken_whole(whole) if whole else None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_place("SpecialToken", bos, 0), _place("Sequence", "A", 0)],
            "pair": [
                *(_place("SpecialToken", bos, 0), _place("Sequence", "A", 0)),
                *(_place("SpecialToken", bos, 1), _place("Sequence", "B", 1)),
            ],
            "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": known[tokenizer.unk_id].text,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": bool(whole),
            "vocab": {piece.text: index for index, piece in enumerate(known)},
            "merges": _merges(known),
        },
    }


def _merges(known: list[Piece]) -> list[str]:
    """Pairs that are joined, first to last: SentencePiece joins those whose whole has the highest score."""
    scores = {piece.text: piece.score for piece in known if piece.kind == NORMAL}
    found = [
        (scores[text], text[:cut], text[cut:])
        for text in scores
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    ]
    found.sort(key=lambda merge: -merge[0])
    return [f"{left} {right}" for _, left, right in found]  # no piece holds a space


def _taken_whole(texts: list[str]) -> dict[str, Any]:
    """Pieces that are taken before anything is joined, the longest at every place."""
    pattern = "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True))
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _special(text: str, index: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": text, **flags, "special": True}


def _place(kind: str, name: str, part: int) -> dict[str, Any]:
    return {kind: {"id": name, "type_id": part}}
