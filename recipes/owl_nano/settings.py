"""Sizes, seeds and schedules of owl-nano: every number of the recipe in one place."""

from __future__ import annotations

from dataclasses import dataclass, replace

from owl_fast.config import AbstractorConfig, LlamaConfig, OwlConfig, VisionConfig

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


@dataclass(frozen=True)
class Schedule:
    """One phase. steps: updates; batch: samples of each; lr: peak after warm-up, then cosine to 5 %."""

    steps: int
    batch: int
    lr: float
    warmup: int = 50

    def scaled(self, factor: float) -> Schedule:
        return replace(
            self, steps=max(1, round(self.steps * factor)), warmup=round(self.warmup * min(1, factor))
        )


# Batches are per process; two processes share a phase.
CORPUS_DIALOGUES = 4000
SHARDS = 18  # of 2000 pictures
WARMUP = Schedule(steps=1600, batch=32, lr=0.012)
DRILLS = Schedule(steps=2500, batch=12, lr=0.008)
DRILL_SHARE = 0.3  # of the samples while the language model learns to converse
TEXT = Schedule(steps=5000, batch=14, lr=0.008)
STAGE1 = Schedule(steps=2600, batch=12, lr=0.009)
STAGE2 = Schedule(steps=1400, batch=10, lr=0.004)
