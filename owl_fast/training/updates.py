"""Reading ahead: the micro-batches of each update, in this process or in reader processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch.utils.data

from owl_fast.errors import DataError, OwlError, UnsupportedError
from owl_fast.training.packing import EncodedSample, TrainingBatch, pack
from owl_fast.training.ranks import Ranks
from owl_fast.training.sample import Caption, Sample
from owl_fast.training.sources import DrawPlan

Encode = Callable[[Sample | Caption], EncodedSample]


@dataclass
class UpdateReader:
    """reader(step) -> the packed micro-batches of an update; a pure function of the plan and the step.

    With several ranks each reads every size-th sample of the update.
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
        try:
            record = source.get(index)
            if isinstance(record, EncodedSample):
                return record
            if self.encode is None:
                raise DataError(f"a {type(record).__name__} came and the run has no encoder; give encode=")
            return self.encode(record)
        except OwlError as error:
            raise DataError(f"source {source.name}, record {index}: {error}") from error


class _Updates(torch.utils.data.Dataset[list[TrainingBatch] | OwlError]):
    def __init__(self, reader: UpdateReader) -> None:
        self.reader = reader

    def __getitem__(self, step: int) -> list[TrainingBatch] | OwlError:
        try:
            return self.reader(step)
        except OwlError as error:
            return error  # raised in the main process: the loader would bury the message in a traceback


def read_updates(reader: UpdateReader, steps: Sequence[int], workers: int) -> Iterator[list[TrainingBatch]]:
    """Micro-batches of each step in order, the same for any number of workers (processes)."""
    if not workers:
        yield from map(reader, steps)
        return
    loader = torch.utils.data.DataLoader(
        _Updates(reader),
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        collate_fn=_as_is,
        multiprocessing_context="fork",  # sources may be closures, which cannot be pickled
    )
    for batches in loader:
        if isinstance(batches, OwlError):
            raise batches
        yield batches


def _as_is(batches: list[TrainingBatch] | OwlError) -> list[TrainingBatch] | OwlError:
    return batches
