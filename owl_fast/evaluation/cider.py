"""CIDEr-D (Vedantam et al., arXiv 1411.5726), the score of captions that papers print as CIDEr.

Written here because what publishes it is no part to depend on: pycocoevalcap is a wheel of 104 MB of Java,
aac-metrics brings torchaudio, sentence-transformers and more. tests/evaluation/test_captions.py holds it to
numbers computed by hand and to pycocoevalcap's.

A caption is a vector per n of 1 to 4: how often each n-gram stands in it, times log(pictures / pictures with
a reference that has it). Two captions are as alike as the cosine of these vectors, where a caption gets no
more for a word than the reference has of it, times exp(-(difference in length)^2 / 72); a score is the mean
over n and references, times 10.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

MOST = 4  # words of an n-gram
SIGMA = 6.0
SCALE = 10.0

Gram = tuple[str, ...]


class CiderD:
    """references: of each picture, as words."""

    def __init__(self, references: Sequence[Sequence[Sequence[str]]]) -> None:
        self._references = [[_grams(words) for words in captions] for captions in references]
        self._pictures_with: Counter[Gram] = Counter()
        for captions in self._references:
            self._pictures_with.update({gram for caption in captions for grams in caption for gram in grams})
        self._pictures = math.log(max(1, len(references)))

    def score(self, picture: int, words: Sequence[str]) -> float:
        """Of a caption of this picture, 0 to 10. With one picture alone every score is 0."""
        caption = _grams(words)
        references = self._references[picture]
        return SCALE * sum(self._alike(caption, reference) for reference in references) / len(references)

    def _alike(self, caption: list[Counter[Gram]], reference: list[Counter[Gram]]) -> float:
        longer = sum(caption[1].values()) - sum(reference[1].values())
        penalty = math.exp(-(longer**2) / (2 * SIGMA**2))
        cosines = (self._cosine(one, other) for one, other in zip(caption, reference, strict=True))
        return penalty * sum(cosines) / MOST

    def _cosine(self, caption: Counter[Gram], reference: Counter[Gram]) -> float:
        lengths = self._length(caption) * self._length(reference)
        if lengths == 0:
            return 0.0
        shared = (
            min(count, reference[gram]) * reference[gram] * self._weight(gram) ** 2
            for gram, count in caption.items()
            if gram in reference
        )
        return sum(shared) / lengths

    def _length(self, grams: Counter[Gram]) -> float:
        return math.sqrt(sum((count * self._weight(gram)) ** 2 for gram, count in grams.items()))

    def _weight(self, gram: Gram) -> float:
        return self._pictures - math.log(max(1, self._pictures_with[gram]))


def _grams(words: Sequence[str]) -> list[Counter[Gram]]:
    """How often each n-gram is there, for n of 1 to MOST."""
    return [
        Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))
        for n in range(1, MOST + 1)
    ]
