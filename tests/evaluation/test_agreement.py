"""Kappa against values worked out by hand."""

from __future__ import annotations

import pytest

from owl_fast.evaluation.agreement import kappa, weighted_kappa


def test_kappa_by_hand() -> None:
    """70 % are equal; chance: 0.5 x 0.6 + 0.5 x 0.4 = 50 %; (0.7 - 0.5) / (1 - 0.5)."""
    pairs = [(0, 0)] * 20 + [(0, 1)] * 5 + [(1, 0)] * 10 + [(1, 1)] * 15
    assert kappa(pairs) == pytest.approx(0.4)
    assert weighted_kappa(pairs) == pytest.approx(0.4)  # of two grades there is one distance


def test_weights_by_hand() -> None:
    """Squares seen: 1 + 1 of 4. By chance: 2 x (1x0 + 2x1 + 1x9) + (1 + 0 + 4) + (4 + 2 + 1) = 34 of 16."""
    pairs = [(0, 0), (0, 1), (1, 1), (2, 3)]
    assert weighted_kappa(pairs) == pytest.approx(1 - (2 / 4) / (34 / 16))
    # Unequal by chance: 2 x 3 + 2 + 4 = 12 of 16.
    assert kappa(pairs) == pytest.approx(1 - (2 / 4) / (12 / 16))


def test_ends() -> None:
    assert kappa([(0, 0), (1, 1), (3, 3)]) == weighted_kappa([(0, 0), (3, 3)]) == 1
    assert weighted_kappa([(0, 3), (3, 0)]) == -1
    assert kappa([(2, 2)] * 5) is None
