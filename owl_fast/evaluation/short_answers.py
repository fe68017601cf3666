"""Short answers against those of people: VQA accuracy (Antol et al., arXiv 1505.00468) and exact match.

Both compare normalised texts: lower case, punctuation, articles and the spelling of numbers and contractions
make no difference.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

ENOUGH = 3  # people who said the same make an answer right
_ARTICLES = {"a", "an", "the"}
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": 0, **{word: number for number, word in enumerate(_DIGITS)}}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_IN_NUMBER = re.compile(r"(?<=\d),(?=\d)")
_STOP = re.compile(r"\.(?!\d)")
_NOT = "ai are ca could did do does had has have is might must need ought sha should was were wo would"
_PRONOUNS = "he how it she somebody someone something that there they we what when where who why you"


def _contractions() -> Iterator[str]:
    for verb in _NOT.split():
        yield f"{verb}n't"
        if verb in ("could", "had", "might", "should", "would"):
            yield f"{verb}n't've"
    for pronoun in _PRONOUNS.split():
        for ending in ("'d", "'d've", "'ll", "'re", "'s", "'ve"):
            yield pronoun + ending
    yield from (f"{modal}'ve" for modal in ("could", "might", "must", "should", "would", "i"))
    yield from ("i'm", "i'd've", "let's", "ma'am", "o'clock", "'twas", "y'all", "y'all'll", "y'all'd've")


_OTHER_WORDS = {"hell", "id", "ill", "its", "lets", "shed", "shell", "wed", "well", "were", "whore"}


def _spellings() -> dict[str, str]:
    """Contraction with one or all apostrophes left out -> the contraction; but not what is a word itself."""
    found: dict[str, str] = {}
    for right in _contractions():
        places = [index for index, char in enumerate(right) if char == "'"]
        for wrong in (right.replace("'", ""), *(right[:at] + right[at + 1 :] for at in places)):
            if wrong not in _OTHER_WORDS:
                found[wrong] = right
    return found


_SPELLINGS = _spellings()


def normalised(text: str) -> str:
    """As the VQA challenge compares answers."""
    text = _without_punctuation(" ".join(text.replace("’", "'").split()).lower())
    kept = [str(_NUMBERS.get(word, word)) for word in text.split() if word not in _ARTICLES]
    return " ".join(_SPELLINGS.get(word, word) for word in kept)


def _without_punctuation(text: str) -> str:
    """Marks that stand beside a space somewhere in `text`, and all marks of one with a number like 1,000, go;
    others become spaces, which make no difference to the marks that follow."""
    has_number = _IN_NUMBER.search(text) is not None
    changed = text
    for mark in _PUNCTUATION:
        beside = f"{mark} " in text or f" {mark}" in text
        changed = changed.replace(mark, "" if beside or has_number else " ")
    return _STOP.sub("", changed)


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """0 to 1: for each reference left out, how many of the others say the same, out of three at most;
    averaged.

    With ten references, as VQA has, it is the challenge's. With two or three it is the share of the others
    that say the same, averaged; with one it is exact match.
    """
    said = normalised(answer)
    same = [normalised(reference) == said for reference in references]
    if len(same) == 1:
        return float(same[0])
    enough = min(ENOUGH, len(same) - 1)
    return sum(min(1.0, (sum(same) - one) / enough) for one in same) / len(same)


def exact_match(answer: str, references: Sequence[str]) -> bool:
    """Whether it is one of the references, normalised."""
    said = normalised(answer)
    return any(normalised(reference) == said for reference in references)
