"""Training: samples in, adapted weights out."""

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
    "EncodedSample",
    "OptimizerSettings",
    "Sample",
    "Source",
    "Stage",
    "TrainSettings",
    "Trainer",
    "encode_sample",
    "pack",
    "stage2",
]
