"""VQA accuracy, exact match, and the normalisation of both."""

from __future__ import annotations

import pytest

from owl_fast.evaluation.intervals import wilson
from owl_fast.evaluation.short_answers import exact_match, normalised, vqa_accuracy


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("A dog.", "dog"),
        ("  the\n Red   car ", "red car"),
        ("Two", "2"),
        ("None", "0"),
        ("ten thousand", "10 thousand"),
        ("dont", "don't"),
        ("don’t", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("whats", "what's"),
        ("its", "its"),
        ("well", "well"),
        ("1,000 people!", "1000 people"),
        ("3.5 m", "3.5 m"),
        (".5", ".5"),
        ("The U.S.", "us"),
        ("red/blue", "red blue"),
        ("red, blue", "red blue"),
        ("T-shirt", "t shirt"),
        ("10:30", "10:30"),
        ("yes!?", "yes"),
        ("a", ""),
        # Beside a space in what was said, not in what is left of it: "(" became one before "-" is looked at.
        ("(a)-b-c", "b c"),
        ("red (dark)-ish-x", "red dark ish x"),
        ("a;/b/c", "b c"),
        ("x-y - z", "xy z"),  # one place counts for all
        ("x,-y-z", "x y z"),
    ],
)
def test_normalised(text: str, wanted: str) -> None:
    assert normalised(text) == wanted


@pytest.mark.parametrize(
    ("same", "of", "wanted"),
    [
        (10, 10, 1.0),
        (4, 10, 1.0),
        (3, 10, 0.9),  # three people have only two who agree with them: (3 * 2/3 + 7 * 1) / 10
        (2, 10, 0.6),
        (1, 10, 0.3),
        (0, 10, 0.0),
        (1, 1, 1.0),
        (0, 1, 0.0),
        (1, 2, 0.5),
        (2, 2, 1.0),
        (2, 3, (1 / 2 + 1 / 2 + 1) / 3),
        (4, 5, 1.0),
    ],
)
def test_vqa_accuracy(same: int, of: int, wanted: float) -> None:
    references = ["A Cat."] * same + [f"dog {n}" for n in range(of - same)]
    assert vqa_accuracy("cat", references) == pytest.approx(wanted)
    assert exact_match("cat", references) == (same > 0)


def test_wilson() -> None:
    """Beside the values of Newcombe (1998), table I."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)
