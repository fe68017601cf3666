"""In which order an epoch visits a source's records: a permutation computed place by place.

Nothing is kept per record, so a source of any size costs nothing to shuffle.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

ROUNDS = 6
WINDOW = 4  # groups whose records are shuffled together
_MASK = (1 << 64) - 1


class Shuffle:
    """A permutation of range(size), drawn by `seed`: shuffle[place] -> index.

    A Feistel network permutes the numbers of 2 h bits, of which there are at most 4 times as many as wanted;
    a number past the end is sent through it again until it falls inside ("cycle walking").
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self._half = max(1, ((size - 1).bit_length() + 1) // 2)
        self._keys = [_mix(seed + number * 0x9E3779B97F4A7C15) for number in range(ROUNDS)]

    def __getitem__(self, place: int) -> int:
        half, low = self._half, (1 << self._half) - 1
        while True:
            left, right = place >> half, place & low
            for key in self._keys:
                left, right = right, left ^ (_mix(right ^ key) & low)
            place = left << half | right
            if place < self.size:
                return place


class GroupedShuffle:
    """A permutation that stays in few groups at a time: shuffle[place] -> index.

    sizes: of the groups (files, or parts of files), whose records follow each other. The groups come in a new
    order, WINDOW of them after another, and the records of a window are shuffled: a reader sees files mostly
    one after another, yet neighbours are not drawn together.
    """

    def __init__(self, sizes: Sequence[int], seed: int) -> None:
        starts = [0, *accumulate(sizes)]
        order = list(range(len(sizes)))
        random.Random(seed).shuffle(order)
        windows = [order[i : i + WINDOW] for i in range(0, len(order), WINDOW)]
        self._groups = [[(starts[group], sizes[group]) for group in window] for window in windows]
        counts = [sum(size for _, size in window) for window in self._groups]
        self._ends = list(accumulate(counts))
        self._shuffles = [Shuffle(count, seed ^ number) for number, count in enumerate(counts, start=1)]

    def __getitem__(self, place: int) -> int:
        window = bisect_right(self._ends, place)
        before = self._ends[window - 1] if window else 0
        rest = self._shuffles[window][place - before]
        for start, size in self._groups[window]:
            if rest < size:
                return start + rest
            rest -= size
        raise IndexError(place)


def _mix(value: int) -> int:
    """64 bits, each of which depends on all of the value's (the finalizer of splitmix64)."""
    value &= _MASK
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31
