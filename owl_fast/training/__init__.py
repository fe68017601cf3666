"""Training: samples in, adapted weights out."""

from owl_fast.training.bad_rows import find_bad_rows, leave_out_bad_rows
from owl_fast.training.datasets import Dataset, ReadOptions, as_sources, open_datasets
from owl_fast.training.loop import Trainer, TrainSettings
from owl_fast.training.optimizer import OptimizerSettings
from owl_fast.training.packing import EncodedSample, encode_sample, pack
from owl_fast.training.sample import Caption, Sample
from owl_fast.training.sources import Source
from owl_fast.training.stages import FULL_LLAMA, STAGE1, Stage, stage2

__all__ = [
    "FULL_LLAMA",
    "STAGE1",
    "Caption",
    "Dataset",
    "EncodedSample",
    "OptimizerSettings",
    "ReadOptions",
    "Sample",
    "Source",
    "Stage",
    "TrainSettings",
    "Trainer",
    "as_sources",
    "encode_sample",
    "find_bad_rows",
    "leave_out_bad_rows",
    "open_datasets",
    "pack",
    "stage2",
]
