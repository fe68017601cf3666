"""Captions against references: BLEU (sacrebleu) and CIDEr-D, over the same words.

Words are taken much as by COCO's tokenizer, which is Java: lower case, punctuation dropped, clitics such as
"n't" and "'s" words of their own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from owl_fast.errors import UnsupportedError

_CLITIC = re.compile(r"(?<=\w)(n't|'(?:s|re|ve|ll|d|m))\b")
_WORD = re.compile(r"n't\b|'(?:s|re|ve|ll|d|m)\b|\d+(?:[.,:]\d+)*(?!\w)|\w+(?:[-.]\w+)*")


def words(text: str) -> list[str]:
    spaced = _CLITIC.sub(r" \1", text.lower().replace("’", "'"))
    return _WORD.findall(spaced)


def scorer() -> type[Any]:
    """sacrebleu's BLEU; UnsupportedError without it."""
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ModuleNotFoundError:
        raise UnsupportedError(
            "BLEU takes sacrebleu, which is not installed; pip install -c constraints.txt '.[evaluate]'"
        ) from None
    return BLEU


def bleu(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU-1 to BLEU-4 of all answers together, 0 to 100, unsmoothed; the length that counts is that of the
    reference nearest in length."""
    said = [" ".join(words(answer)) for answer in answers]
    wanted = [[" ".join(words(reference)) for reference in of_one] for of_one in references]
    streams = [list(stream) for stream in zip_longest(*wanted)]  # None where a picture has fewer
    found = {}
    for n in range(1, 5):
        of_n = scorer()(tokenize="none", smooth_method="none", max_ngram_order=n, force=True)
        found[f"BLEU-{n}"] = float(of_n.corpus_score(said, streams).score)
    return found
