"""A very small owl and made-up samples for tests of training."""

from __future__ import annotations

import random
from typing import Any

import torch

from owl_fast.config import AbstractorConfig, LlamaConfig, OwlConfig, VisionConfig
from owl_fast.models.layers import init_weights
from owl_fast.models.owl import Owl
from owl_fast.training import EncodedSample
from owl_fast.training.packing import IGNORED

VOCABULARY, WIDTH = 32, 16
CONFIG = OwlConfig(
    vision=VisionConfig(WIDTH, 24, 1, 2, image_size=8, patch_size=4),
    abstractor=AbstractorConfig(WIDTH, WIDTH, 24, 1, 2, attention_probs_dropout_prob=0.1),
    llama=LlamaConfig(VOCABULARY, WIDTH, 24, 2, 2, 2),
    num_query_tokens=2,
)
ROWS = CONFIG.image_rows


def small_owl(seed: int = 0, dtype: torch.dtype = torch.float32) -> Owl:
    model = Owl(CONFIG)
    init_weights(model, seed, std=0.2)
    return model.to(dtype).eval()


def made_up(index: int, pictures: int = 0, features: bool = False) -> EncodedSample:
    """A sample of its own length; a pure function of its arguments."""
    rng = random.Random(index)
    words = [rng.randrange(3, VOCABULARY) for _ in range(rng.randrange(4, 9))]
    ids = [1, *[-1] * (ROWS * pictures), *words, 2]
    labels = [IGNORED] * (len(ids) - 3) + ids[-3:]
    generator = torch.Generator().manual_seed(index)
    shape = (1 + CONFIG.vision.num_patches, WIDTH) if features else (3, 8, 8)
    visual = [torch.randn(shape, generator=generator) for _ in range(pictures)]
    return EncodedSample(ids, labels, visual, f"made-up {index}")


def weights(model: Owl) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def without_times(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
