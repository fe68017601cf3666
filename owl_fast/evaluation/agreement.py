"""How far two raters agree: equal grades, and Cohen's kappa of them (Cohen 1960; with weights: 1968)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

Weight = Callable[[int, int], float]


def kappa(pairs: Sequence[tuple[int, int]], weight: Weight = lambda one, other: one != other) -> float | None:
    """1 - the disagreement that was seen / that of two raters who grade as often so and so, but at random.

    pairs: two raters' grades of each answer, as numbers. weight: how far two grades are apart; as it is, any
    two that differ are equally far. None where chance alone could not disagree (both gave one grade only).
    """
    ones, others = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    seen = sum(weight(one, other) for one, other in pairs) * len(pairs)
    chance = sum(weight(one, other) * ones[one] * others[other] for one in ones for other in others)
    return 1 - seen / chance if chance else None


def weighted_kappa(pairs: Sequence[tuple[int, int]]) -> float | None:
    """Quadratic: an A beside a D weighs nine times as much as an A beside a B."""
    return kappa(pairs, lambda one, other: float((one - other) ** 2))
