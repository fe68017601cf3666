"""Sizes, seeds and schedules of owl-nano: every number of the recipe in one place."""

from __future__ import annotations

from dataclasses import dataclass, replace

from owl_fast.config import AbstractorConfig, LlamaConfig, OwlConfig, VisionConfig
from owl_fast.training.optimizer import OptimizerSettings

SEED = 2023
VOCABULARY_SIZE = 768
QUERIES = 24
IMAGE_SIDE = 112

CONFIG = OwlConfig(
    vision=VisionConfig(
        hidden_size=192,
        intermediate_size=576,
        num_hidden_layers=4,
        num_attention_heads=6,
        image_size=IMAGE_SIDE,
        patch_size=14,
    ),
    abstractor=AbstractorConfig(
        hidden_size=192,
        encoder_hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=6,
        attention_probs_dropout_prob=0.0,
    ),
    llama=LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=2048,
    ),
    num_query_tokens=QUERIES,
)


ADAMW_LR = 1.5e-3  # before stage 1, of what is no matrix inside a layer
MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Schedule:
    """steps: updates; batch: samples of each; lr: Muon's peak after warm-up, then a cosine down."""

    steps: int
    batch: int
    lr: float
    warmup: int = 50

    def scaled(self, factor: float) -> Schedule:
        return replace(
            self, steps=max(1, round(self.steps * factor)), warmup=round(self.warmup * min(1, factor))
        )

    def optimizer(self) -> OptimizerSettings:
        return OptimizerSettings(lr=self.lr, warmup=self.warmup, final_fraction=0.05, clip=MAX_GRADIENT_NORM)


CORPUS_DIALOGUES = 4000
PICTURES = 36_000
WARMUP = Schedule(steps=1600, batch=64, lr=0.012)
DRILLS = Schedule(steps=1000, batch=24, lr=0.008)
DRILL_SHARE = 0.3  # of the samples while the language model learns to converse
TEXT = Schedule(steps=4500, batch=28, lr=0.008)
LATER = Schedule(steps=1200, batch=28, lr=0.006)  # two rounds
LATER_DRILL_SHARE = 0.5
# Of Muon and AdamW alike, as the training command scales them.
STAGE1 = Schedule(steps=4800, batch=24, lr=0.003)
STAGE2 = Schedule(steps=2000, batch=20, lr=0.001)
