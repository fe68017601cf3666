"""Stages 1 and 2 of the paper, on pictures, with the package's own training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from owl_fast.lora import LoraConfig
from owl_fast.models.owl import Owl
from owl_fast.training.loop import Evaluate, Trainer, TrainSettings
from owl_fast.training.optimizer import OptimizerSettings
from owl_fast.training.sources import Source
from owl_fast.training.stages import STAGE1, Stage, stage2
from recipes.owl_nano.encoding import Encoder
from recipes.owl_nano.optimizer import MuonAdamW, muon_adamw
from recipes.owl_nano.settings import ADAMW_LR, Schedule

LORA = LoraConfig(r=8, alpha=32, dropout=0.0)
TOWER_FACTOR = 0.2  # of the learning rate, for the vision tower, which is warmed up already


def prepare_abstractor(model: Owl, encoder: Encoder, seed: int) -> None:
    """Start the abstractor with rows of the stand-in rows' size; vit_eos is their closing row."""
    generator = torch.Generator().manual_seed(seed)
    abstractor = model.abstractor
    with torch.no_grad():
        model.query_tokens.normal_(0.0, 1.0, generator=generator)
        for parameter in abstractor.encoder.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5, generator=generator)
        abstractor.visual_fc.get_parameter("weight").normal_(0.0, 0.015, generator=generator)
        closing = encoder.text(".")[-1]
        abstractor.vit_eos.copy_(model.language_model.model.embed_tokens.weight[closing])


def train_stage(
    model: Owl,
    stage: Stage,
    sources: Sequence[Source],
    schedule: Schedule,
    folder: Path,
    seed: int,
    evaluate: Evaluate | None = None,
    every: int = 100,
) -> None:
    """Train in place; metrics and snapshots go to folder. It goes on from the newest snapshot there."""
    settings = TrainSettings(
        steps=schedule.steps,
        batch=schedule.batch,
        optimizer=schedule.optimizer(),
        seed=seed,
        save_every=every,
        keep=1,
        eval_every=every,
    )
    Trainer(model, stage, sources, settings, folder, evaluate=evaluate, optimizer=_optimizer).run()


def _optimizer(parameters: Mapping[str, nn.Parameter], settings: OptimizerSettings) -> MuonAdamW:
    return muon_adamw(parameters, settings.lr, ADAMW_LR, (("vision_model.", TOWER_FACTOR),))


__all__ = ["LORA", "STAGE1", "prepare_abstractor", "stage2", "train_stage"]
