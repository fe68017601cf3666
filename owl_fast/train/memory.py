"""How a run fits the memory there is: its plan, and the largest micro-batch that fits."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain

import torch

from owl_fast import machine
from owl_fast.config import OwlConfig, Quantization
from owl_fast.errors import DataError
from owl_fast.train.watch import spread
from owl_fast.training.datasets import Dataset
from owl_fast.training.memory_plan import MicroBatch, Plan, Planner, Setup
from owl_fast.training.packing import IGNORED, EncodedSample
from owl_fast.training.sample import Caption, Sample
from owl_fast.training.stages import Stage

LOOKED_AT = 64  # samples that tell how long those of the data are


def plan_of(
    args: argparse.Namespace,
    config: OwlConfig,
    stage: Stage,
    device: torch.device,
    dtype: torch.dtype,
    data: Sequence[Dataset],
    encode: Callable[[Sample | Caption], EncodedSample],
) -> Plan:
    """For --micro-batch, or for the largest micro-batch that fits; UnsupportedError if nothing does."""
    quantization = config.quantization if args.quant == "none" else Quantization(args.quant)
    planner = Planner(
        Setup(
            replace(config, quantization=quantization),
            stage,
            device,
            dtype,
            "fp32" if dtype == torch.float32 else "bf16",
            args.optimizer,
        )
    )
    budget = int(args.memory * 1e9) if args.memory else machine.free_memory(device)
    sample = typical(chain(*(spread(part, -(-LOOKED_AT // len(data))) for part in data)), encode)
    if args.micro_batch:
        return planner.fit(sample.times(args.micro_batch), budget)
    return planner.largest(sample, budget, most=args.batch)


def typical(
    records: Iterable[Sample | Caption], encode: Callable[[Sample | Caption], EncodedSample]
) -> MicroBatch:
    """What the records take together, as one micro-batch."""
    encoded = [encode(record) for record in records]
    if not encoded:
        raise DataError("no sample of the data can be read; python -m owl_fast.data check names the reasons")
    return MicroBatch(
        samples=len(encoded),
        rows=sum(len(sample.token_ids) for sample in encoded),
        labelled=sum(label != IGNORED for sample in encoded for label in sample.labels[1:]),
        pictures=sum(len(sample.visual) for sample in encoded),
    )
