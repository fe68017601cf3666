"""The micro-batches of each update: a pure function of the plan and the update's number."""

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
    """reader(step) -> the packed micro-batches of an update.

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

    def __call__(self, step: int) -> list[TrainingBatch]:
        draws = range(step * self.batch + self.ranks.rank, (step + 1) * self.batch, self.ranks.size)
        samples = [self._sample(draw) for draw in draws]
        size = self.micro_batch
        return [pack(samples[i : i + size], self.image_rows) for i in range(0, len(samples), size)]

    def _sample(self, draw: int) -> EncodedSample:
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
