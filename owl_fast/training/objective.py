"""The loss: cross entropy summed over labelled tokens, so that micro-batches are normalised together."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from owl_fast import ops
from owl_fast.errors import UnsupportedError
from owl_fast.models.owl import Owl
from owl_fast.training.packing import TrainingBatch


class TokenLoss(nn.Module):
    """token_loss as a module, which torch's DDP can wrap."""

    def __init__(self, model: Owl) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: TrainingBatch) -> Tensor:
        return token_loss(self.model, batch)


def token_loss(model: Owl, batch: TrainingBatch) -> Tensor:
    """Sum of -log p(token) over the batch's labelled tokens, a scalar in float32."""
    packed = batch.packed
    if packed.visual_index is not None:
        packed = replace(packed, visual_embeds=_visual_rows(model, batch))
    hidden = model(packed)  # (N, C)
    head = model.language_model.lm_head.operand
    return ops.linear_cross_entropy(hidden[batch.rows], head, batch.targets)


def _visual_rows(model: Owl, batch: TrainingBatch) -> Tensor:
    """Rows (n * image_rows, C) of all pictures; a frozen tower runs without recording."""
    trains = any(p.requires_grad for p in model.vision_model.parameters())
    features = batch.features
    if batch.from_pixels is not None:
        raise UnsupportedError(
            f"{batch.records[0]}: some pictures came as pixels, some as cached features; "
            "give the trainer the cache they are from"
        )
    if features is None:
        assert batch.pixels is not None
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            features = model.vision_model(batch.pixels.to(model.dtype))
    elif trains:
        raise UnsupportedError(
            f"{batch.records[0]}: cached vision features came, but the vision tower trains; give pixels"
        )
    return model.abstract(features.to(model.dtype)).flatten(0, 1)
