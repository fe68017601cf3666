"""The order of the samples: shares, epochs, and that it depends on nothing but seed and draw."""

from __future__ import annotations

from collections import Counter

import pytest

from owl_fast.errors import DataError
from owl_fast.training.sources import CYCLE, DrawPlan, Source
from tests.training.owls import made_up


def source(name: str, weight: float = 1.0, size: int | None = None) -> Source:
    return Source(name, made_up, weight, size)


def drawn(plan: DrawPlan, draws: range) -> list[tuple[str, int]]:
    return [(found.name, index) for found, index in map(plan, draws)]


def test_each_epoch_visits_every_record_once_in_a_new_order() -> None:
    plan = DrawPlan([source("a", size=37), source("b", 2.0)], seed=5)
    indices = [index for name, index in drawn(plan, range(3 * CYCLE)) if name == "a"]
    epochs = [indices[i : i + 37] for i in range(0, 37 * 20, 37)]
    assert all(sorted(epoch) == list(range(37)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 20


def test_endless_sources_count_up() -> None:
    plan = DrawPlan([source("a"), source("b")], seed=0)
    found = drawn(plan, range(2 * CYCLE))
    for name in ("a", "b"):
        assert [index for n, index in found if n == name] == list(range(CYCLE))


@pytest.mark.parametrize(
    ("weights", "quotas"),
    [((1, 1), (512, 512)), ((72, 14, 14), (738, 143, 143)), ((1, 1e-9), (1023, 1)), ((3,), (1024,))],
)
def test_shares(weights: tuple[float, ...], quotas: tuple[int, ...]) -> None:
    plan = DrawPlan([source(str(i), w) for i, w in enumerate(weights)], seed=1)
    counts = Counter(name for name, _ in drawn(plan, range(CYCLE, 2 * CYCLE)))
    assert sum(counts.values()) == CYCLE
    assert all(abs(counts[str(i)] - quota) <= 1 for i, quota in enumerate(quotas))


def test_any_order_of_asking_gives_the_same() -> None:
    sources = [source("a", 3, size=50), source("b", 1)]
    ahead = drawn(DrawPlan(sources, seed=9), range(3000))
    plan = DrawPlan(sources, seed=9)
    assert [drawn(plan, range(k, k + 1))[0] for k in (2999, 3, 1500, 2999)] == [
        ahead[k] for k in (2999, 3, 1500, 2999)
    ]
    assert drawn(DrawPlan(sources, seed=10), range(3000)) != ahead


@pytest.mark.parametrize(
    "sources", [[], [source("a"), source("a")], [source("a", 0.0)], [source("a", size=0)]]
)
def test_refused(sources: list[Source]) -> None:
    with pytest.raises(DataError, match="source"):
        DrawPlan(sources, seed=0)
