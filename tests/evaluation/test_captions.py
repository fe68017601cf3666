"""BLEU and CIDEr-D: by hand, and beside the numbers of pycocoevalcap 1.2 for the same words."""

from __future__ import annotations

import math
import random

import pytest

from owl_fast.evaluation.captions import bleu, words
from owl_fast.evaluation.cider import CiderD

CORPUS = "a man on the beach riding bike dog cat red blue runs two of with".split()  # noqa: SIM905


def sample() -> tuple[list[str], list[list[str]]]:
    """40 captions, some equal to one of their one to five references, some empty."""
    rng = random.Random(0)
    references = [
        [" ".join(rng.choices(CORPUS, k=rng.randint(1, 12))) for _ in range(rng.randint(1, 5))]
        for _ in range(40)
    ]
    answers = [
        rng.choice(of_one) if rng.random() < 0.4 else " ".join(rng.choices(CORPUS, k=rng.randint(0, 12)))
        for of_one in references
    ]
    return answers, references


def test_words() -> None:
    text = "A man's dog isn’t here; the T-shirt costs $2.50, he said!"
    wanted = ["a", "man", "'s", "dog", "is", "n't", "here", "the", "t-shirt", "costs", "2.50", "he", "said"]
    assert words(text) == wanted


def test_cider_by_hand() -> None:
    """Two pictures: "red" and "circle" stand in one each, "a" in both and counts nothing."""
    cider = CiderD([[["a", "red", "circle"]], [["a", "star"], ["a", "blue", "star"]]])
    # All n-grams of one picture weigh log 2. Unigrams, bigrams, trigrams fit; 4-grams there are none.
    assert cider.score(0, ["a", "red", "circle"]) == pytest.approx(10 * 3 / 4)
    # Unigrams: red of (red, circle): 1 / sqrt 2. Bigrams: "a red" of ("a red", "red circle"): the same. One
    # bigram less: exp(-1 / 72).
    assert cider.score(0, ["a", "red"]) == pytest.approx(10 * 2 / math.sqrt(2) / 4 * math.exp(-1 / 72))
    # Repeated words gain nothing: min(3, 1) * 1 / (3 * sqrt 2), two bigrams on either side.
    assert cider.score(0, ["red", "red", "red"]) == pytest.approx(10 * 1 / (3 * math.sqrt(2)) / 4)
    # The mean over two references, of which the first fits in unigrams and bigrams.
    second = math.exp(-1 / 72) * (1 / math.sqrt(2)) / 4
    assert cider.score(1, ["a", "star"]) == pytest.approx(10 * (2 / 4 + second) / 2)
    assert cider.score(1, []) == 0
    assert CiderD([[["a", "star"]]]).score(0, ["a", "star"]) == 0


def test_numbers_of_the_reference_implementation() -> None:
    answers, references = sample()
    cider = CiderD([[caption.split() for caption in of_one] for of_one in references])
    scores = [cider.score(place, answer.split()) for place, answer in enumerate(answers)]
    assert sum(scores) / 40 == pytest.approx(1.87339353218445, abs=1e-12)
    wanted = (73.35760425, 61.38307561, 57.35487704, 55.55532445)
    assert bleu(answers, references) == pytest.approx(
        {f"BLEU-{n}": value for n, value in enumerate(wanted, start=1)}, abs=1e-5
    )
