"""Where samples come from, and which one is the k-th: a pure function of the seed and k.

A run can therefore resume at any update, with any number of reader processes, and see the same samples.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from owl_fast.errors import DataError
from owl_fast.training.order import GroupedShuffle, Shuffle
from owl_fast.training.packing import EncodedSample
from owl_fast.training.sample import Caption, Sample

Record = Sample | Caption | EncodedSample
CYCLE = 1024  # draws over which the sources' shares are exact


@dataclass(frozen=True)
class Source:
    """get(index) -> record, a pure function of the index.

    weight: share of the draws, relative to the other sources. size: number of records, visited in a new order
    each epoch; None: endless, get is called with 0, 1, 2, ... groups: sizes of parts that are cheap to read
    one after another; an epoch visits them in turn (order.GroupedShuffle). data: what tells these records
    from others of the same name and number, such as a fingerprint of their files.
    """

    name: str
    get: Callable[[int], Record]
    weight: float = 1.0
    size: int | None = None
    groups: Sequence[int] | None = None
    data: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, name: str, records: Sequence[Record], weight: float = 1.0) -> Source:
        return cls(name, records.__getitem__, weight, len(records))

    def describe(self) -> dict[str, Any]:
        """What a run must find again to be resumed, ready for JSON."""
        described = {"name": self.name, "weight": self.weight, "size": self.size}
        return described if self.data is None else {**described, "data": dict(self.data)}


class DrawPlan:
    """plan(k) -> (source, index) of the k-th draw."""

    def __init__(self, sources: Sequence[Source], seed: int) -> None:
        for source in sources:
            if not (source.weight > 0 and math.isfinite(source.weight)) or source.size == 0:
                raise DataError(
                    f"source {source.name}: weight {source.weight}, size {source.size}; "
                    "wanted a weight above 0 and at least one record"
                )
        if not sources or len({source.name for source in sources}) < len(sources):
            raise DataError(f"wanted one or more sources of different names, got {[s.name for s in sources]}")
        self.sources, self.seed = tuple(sources), seed
        self.quotas = _quotas([source.weight for source in sources])
        self._cycle: tuple[int, list[tuple[int, int]]] = (-1, [])
        self._epochs: dict[int, tuple[int, Shuffle | GroupedShuffle]] = {}

    def __call__(self, draw: int) -> tuple[Source, int]:
        cycle, place = divmod(draw, CYCLE)
        if self._cycle[0] != cycle:
            self._cycle = (cycle, self._order(cycle))
        number, rank = self._cycle[1][place]
        source = self.sources[number]
        drawn = cycle * self.quotas[number] + rank  # draws of this source before this one
        if source.size is None:
            return source, drawn
        epoch, position = divmod(drawn, source.size)
        return source, self._shuffle(number, epoch)[position]

    def _order(self, cycle: int) -> list[tuple[int, int]]:
        """(source number, how many of its draws came before in this cycle) of every draw of a cycle."""
        numbers = [number for number, quota in enumerate(self.quotas) for _ in range(quota)]
        random.Random(derive_seed(self.seed, "cycle", cycle)).shuffle(numbers)
        seen = [0] * len(self.quotas)
        order = []
        for number in numbers:
            order.append((number, seen[number]))
            seen[number] += 1
        return order

    def _shuffle(self, number: int, epoch: int) -> Shuffle | GroupedShuffle:
        """The order of an epoch; by the source's number, so that other names draw the same."""
        cached = self._epochs.get(number)
        if cached is None or cached[0] != epoch:
            source, seed = self.sources[number], derive_seed(self.seed, "epoch", number, epoch)
            assert source.size is not None
            shuffle = (
                Shuffle(source.size, seed) if source.groups is None else GroupedShuffle(source.groups, seed)
            )
            cached = self._epochs[number] = (epoch, shuffle)
        return cached[1]


def derive_seed(*parts: object) -> int:
    """A seed (63 bits) from anything with a stable repr; near inputs give unrelated seeds."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def _quotas(weights: Sequence[float]) -> list[int]:
    """CYCLE draws shared out by largest remainder, at least one each."""
    shares = [CYCLE * weight / sum(weights) for weight in weights]
    quotas = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: quotas[i] - shares[i])
    for i in by_remainder[: CYCLE - sum(quotas)]:
        quotas[i] += 1
    for i, quota in enumerate(quotas):
        if quota == 0:
            quotas[i] = 1
            quotas[quotas.index(max(quotas))] -= 1
    return quotas
