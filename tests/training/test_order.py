"""Shuffles that keep nothing: permutations, well mixed, and close to their groups."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from owl_fast.training.order import WINDOW, GroupedShuffle, Shuffle


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 257, 1000, 4097])
def test_a_shuffle_is_a_permutation(size: int) -> None:
    for seed in range(3):
        shuffle = Shuffle(size, seed)
        assert sorted(shuffle[place] for place in range(size)) == list(range(size))


def test_every_index_comes_everywhere() -> None:
    """2,000 seeds of 20 indices: each is at each place about 100 times (7 deviations is one in 10^11)."""
    counts = Counter((place, Shuffle(20, seed)[place]) for seed in range(2000) for place in range(20))
    assert len(counts) == 400
    assert all(abs(count - 100) < 7 * 95**0.5 for count in counts.values())


def test_neighbours_are_torn_apart() -> None:
    shuffle = Shuffle(10_000, 7)
    order = [shuffle[place] for place in range(10_000)]
    distances = [abs(a - b) for a, b in pairwise(order)]
    assert 3200 < sum(distances) / len(distances) < 3467  # of unrelated numbers: a third of the size
    assert sum(distance == 1 for distance in distances) < 12  # expected: 2


@pytest.mark.parametrize("sizes", [[5], [0, 3, 0], [7, 1, 4, 9, 2, 6, 3, 8, 5], [1] * 30])
def test_groups_are_visited_one_window_after_another(sizes: list[int]) -> None:
    group_of = [group for group, size in enumerate(sizes) for _ in range(size)]
    shuffle = GroupedShuffle(sizes, seed=3)
    order = [shuffle[place] for place in range(sum(sizes))]
    assert sorted(order) == list(range(sum(sizes)))
    seen: list[int] = []
    for index in order:
        group = group_of[index]
        if group in seen:
            assert seen.index(group) >= len(seen) - WINDOW
        else:
            seen.append(group)
    orders = {tuple(GroupedShuffle(sizes, seed)[place] for place in range(sum(sizes))) for seed in range(8)}
    assert len(orders) > 1 or sum(sizes) < 4


def test_a_place_past_the_end_is_an_error() -> None:
    with pytest.raises(IndexError):
        GroupedShuffle([2, 3], seed=0)[5]
