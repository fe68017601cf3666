"""A model's logits on a few built-in prompts, and how far they are from another's."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from owl_fast import ops
from owl_fast.checkpoints import Source
from owl_fast.doctor.pairs import PROMPT, groups
from owl_fast.models.batch import PackedBatch
from owl_fast.models.owl import Owl
from owl_fast.prompts import encode, raw_pieces

TEXTS = (
    "Human: What is the capital of France?\nAI: Paris",
    "Human: Describe how a bicycle works.\nAI: A rider pushes the pedals with the feet",
    "Human: Wie heißt du?\nAI: Ich bin 27 Jahre alt.",
)


class Prompts(NamedTuple):
    """Texts, and one with a picture. sequences: ids, negative for the rows of the picture, whose pixels are
    (1, 3, S, S)."""

    sequences: list[list[int]]
    pixels: Tensor

    @classmethod
    def of(cls, source: Source) -> Prompts:
        tokenizer, rows = source.tokenizer(), source.config.image_rows
        picture, caption = groups()[0][0]
        texts = (*TEXTS, PROMPT + caption)
        return cls(
            [encode(raw_pieces(text), tokenizer, rows) for text in texts], source.processor()(picture)[None]
        )

    @torch.inference_mode()
    def logits(self, model: Owl) -> Tensor:
        """(positions, V) in float32, of all prompts end to end, computed as weights are read from files."""
        with ops.kernels(False):
            rows = model.encode_images(self.pixels).flatten(0, 1)
            hidden = model(PackedBatch.from_sequences(self.sequences, rows))
            return model.logits(hidden).float()


class Gap(NamedTuple):
    """Between logits. largest, mean: of the absolute differences, of logits up to `bound`. same: share of
    positions at which the likeliest token is the same one, of `positions`."""

    largest: float
    mean: float
    same: float
    bound: float
    positions: int

    @classmethod
    def between(cls, ours: Tensor, wanted: Tensor) -> Gap:
        off = (ours - wanted).abs()
        same = (ours.argmax(-1) == wanted.argmax(-1)).double().mean()
        return cls(float(off.max()), float(off.mean()), float(same), float(wanted.abs().max()), len(ours))

    def __str__(self) -> str:
        return (
            f"largest difference {self.largest:.1e}, mean {self.mean:.1e}, of logits up to {self.bound:.3g}; "
            f"the same likeliest token at {self.same:.1%} of {self.positions} positions"
        )

    def within(self, share: float) -> bool:
        """Whether the mean difference is at most this share of the largest logit; NaN is not."""
        return self.mean <= share * max(1.0, self.bound)
