"""How a run fits the memory there is: how large samples of the data are, and which micro-batch takes them."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, replace

import torch

from owl_fast import machine
from owl_fast.config import OwlConfig, Quantization
from owl_fast.training.memory_plan import MicroBatch, Plan, Planner, Setup
from owl_fast.training.packing import IGNORED, EncodedSample, shared_length
from owl_fast.training.ranks import Ranks
from owl_fast.training.stages import Stage
from owl_fast.training.updates import UpdateReader

LOOKED_AT = 1024  # first samples of the run, which tell how long those of the data are
FEW_ROWS, ENOUGH_ROWS = 1024, 4096  # below, matrix products are slower; above, hardly faster


@dataclass(frozen=True)
class Sizes:
    """Of the first samples of a run, in its order. shared: tokens that all of them begin with."""

    samples: list[MicroBatch]
    shared: int

    @classmethod
    def of(cls, reader: UpdateReader) -> Sizes:
        """What reader's samples take; its encode need not look at pictures."""
        encoded = [reader.sample(draw) for draw in range(LOOKED_AT)]
        return cls([_size(sample) for sample in encoded], shared_length(encoded))

    @property
    def mean_rows(self) -> float:
        return sum(sample.rows for sample in self.samples) / len(self.samples)

    def times(self, samples: int) -> MicroBatch:
        """The most that a micro-batch of so many samples takes."""
        once = self.shared * (samples - 1)  # rows that are not computed again
        if samples > len(self.samples):
            whole = _sum(self.samples).times(samples)
            return replace(whole, rows=whole.rows - once)
        firsts = range(0, len(self.samples) - samples + 1, samples)
        groups = [_sum(self.samples[first : first + samples]) for first in firsts]
        return MicroBatch(
            samples,
            max(group.rows for group in groups) - once,
            max(group.labelled for group in groups),
            max(group.pictures for group in groups),
        )


def planner_of(
    args: argparse.Namespace, config: OwlConfig, stage: Stage, device: torch.device, dtype: torch.dtype
) -> Planner:
    quantization = config.quantization if args.quant == "none" else Quantization(args.quant)
    return Planner(
        Setup(
            replace(config, quantization=quantization),
            stage,
            device,
            dtype,
            "fp32" if dtype == torch.float32 else "bf16",
            args.optimizer,
        )
    )


def budget_of(args: argparse.Namespace, device: torch.device, ranks: Ranks) -> int:
    """Bytes each process may take: --memory, or what is free, shared by the processes of a machine."""
    if args.memory:
        return int(args.memory * 1e9)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.type == "cpu" else 1
    free = machine.free_memory(device) // here
    return min(map(int, ranks.gather([str(free)])))  # all of them cut updates alike


def plan_of(planner: Planner, sizes: Sizes, micro_batch: int | None, most: int, budget: int) -> Plan:
    """For a micro-batch of so many samples, or for the one that takes least time.

    most: samples of an update. UnsupportedError: not even one fits.
    """
    if micro_batch is not None:
        return planner.fit(sizes.times(micro_batch), budget)
    enough = max(1, min(most, round(ENOUGH_ROWS / sizes.mean_rows)))
    plans = [planner.largest(sizes, budget, enough)]
    while plans[-1].batch.rows >= 2 * FEW_ROWS and plans[-1].batch.samples > 1:
        plans.append(planner.fit(sizes.times(plans[-1].batch.samples // 2), budget))
    return min(plans, key=lambda plan: plan.flops / plan.batch.samples)


def table(planner: Planner, plan: Plan, sizes: Sizes, batch: int, budget: int) -> str:
    """The plan, and what else would fit."""
    largest = planner.largest(sizes, budget, batch).batch
    return "\n".join((
        plan.table(),
        f"update: {batch} samples, about {batch * sizes.mean_rows:,.0f} tokens",
        f"largest micro-batch that fits into {budget / 1e9:.2f} GB: {largest.samples} samples, "
        f"{largest.rows} rows",
    ))  # fmt: skip


def _size(sample: EncodedSample) -> MicroBatch:
    labelled = sum(label != IGNORED for label in sample.labels[1:])
    return MicroBatch(1, len(sample.token_ids), labelled, len(sample.visual))


def _sum(samples: list[MicroBatch]) -> MicroBatch:
    return MicroBatch(
        len(samples),
        sum(sample.rows for sample in samples),
        sum(sample.labelled for sample in samples),
        sum(sample.pictures for sample in samples),
    )
