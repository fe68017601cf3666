"""The micro-batches of a run: each a pure function of the plan and its number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from owl_fast.errors import DataError, OwlError, UnsupportedError
from owl_fast.training.packing import EncodedSample, TrainingBatch, pack
from owl_fast.training.randomness import seed_on_cpu
from owl_fast.training.ranks import Ranks
from owl_fast.training.sample import Caption, Sample
from owl_fast.training.sources import DrawPlan

Encode = Callable[[Sample | Caption], EncodedSample]


@dataclass
class UpdateReader:
    """reader(number) -> the packed micro-batch; of_update(step) -> the numbers of those of an update.

    With several ranks each reads every size-th sample of the update. The global random generators are seeded
    before each sample, so that what a source or encode draws does not depend on who reads it, or when.
    """

    plan: DrawPlan
    batch: int
    micro_batch: int
    image_rows: int
    encode: Encode | None = None
    ranks: Ranks = field(default_factory=Ranks)

    def __post_init__(self) -> None:
        if self.batch < self.ranks.size:
            raise UnsupportedError(
                f"batch {self.batch}: wanted at least one sample for each of {self.ranks.size} processes"
            )

    @property
    def per_update(self) -> int:
        return self._cuts(self.ranks.rank)

    @property
    def common(self) -> int:
        """Micro-batches of an update that every rank has."""
        return self._cuts(self.ranks.size - 1)

    def of_update(self, step: int) -> range:
        return range(step * self.per_update, (step + 1) * self.per_update)

    def __call__(self, number: int) -> TrainingBatch:
        step, part = divmod(number, self.per_update)
        draws = range(step * self.batch + self.ranks.rank, (step + 1) * self.batch, self.ranks.size)
        mine = draws[part * self.micro_batch : (part + 1) * self.micro_batch]
        return pack([self.sample(draw) for draw in mine], self.image_rows)

    def _cuts(self, rank: int) -> int:
        samples = len(range(rank, self.batch, self.ranks.size))
        return -(-samples // self.micro_batch)

    def sample(self, draw: int) -> EncodedSample:
        """The draw-th sample of the run; DataError names what is wrong with it."""
        source, index = self.plan(draw)
        seed_on_cpu(self.plan.seed, "draw", draw)
        try:
            record = source.get(index)
            if isinstance(record, EncodedSample):
                return record
            if self.encode is None:
                raise DataError(f"a {type(record).__name__} came and the run has no encoder; give encode=")
            return self.encode(record)
        except OwlError as error:
            raise DataError(f"source {source.name}, record {index}: {error}") from error
