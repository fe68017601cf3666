"""Mutated settings and vocabularies: read or refused, never a crash, a hang or much memory."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.mutations import GOOD
from tests.sandbox import watch

KINDS = ("config", "index", "preprocessor", "adapter", "tokenizer", "first_release", "told", "wrapped")
MAX_GROWTH = 200 << 20


def check(count: int) -> None:
    """`count` mutations of each kind."""
    outcomes = watch("tests.mutations:read", [f"{kind} {i}" for i in range(count) for kind in KINDS], GOOD)
    assert [o for o in outcomes if o.kind not in ("read", "refused")] == []
    assert [o for o in outcomes if o.grown > MAX_GROWTH or not 0 < len(o.text) < 1000] == []
    seen = Counter((outcome.case.split()[0], outcome.kind) for outcome in outcomes)
    for kind in KINDS:
        assert seen[kind, "refused"] > count / 10, kind
        assert seen[kind, "read"] > count / 50, kind


def test_some_mutations() -> None:
    check(60)


@pytest.mark.slow
def test_three_thousand_mutations() -> None:
    check(3000 // len(KINDS))
