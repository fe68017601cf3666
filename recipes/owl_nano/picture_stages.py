"""Stages 1 and 2 of the paper, on pictures, with the package's own training loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from owl_fast.lora import LoraConfig
from owl_fast.models.owl import Owl
from owl_fast.training.loop import Evaluate, Trainer, TrainSettings
from owl_fast.training.optimizer import OptimizerSettings, gradient_norm
from owl_fast.training.packing import TrainingBatch
from owl_fast.training.sources import Source
from owl_fast.training.stages import STAGE1, Stage, stage2
from recipes.owl_nano.encoding import Encoder
from recipes.owl_nano.optimizer import muon_adamw
from recipes.owl_nano.parallel import ALONE, Team
from recipes.owl_nano.settings import Schedule

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
        abstractor.visual_fc.weight.normal_(0.0, 0.015, generator=generator)
        closing = encoder.text(".")[-1]
        abstractor.vit_eos.copy_(model.language_model.model.embed_tokens.weight[closing])


def train_stage(
    model: Owl,
    stage: Stage,
    sources: Sequence[Source],
    schedule: Schedule,
    out: Path,
    seed: int,
    evaluate: Evaluate | None = None,
    every: int = 100,
    adamw_lr: float = 2e-3,
    team: Team = ALONE,
) -> None:
    """Train in place; metrics and snapshots go to out, and a run goes on from the newest snapshot there.

    schedule.lr is Muon's; adamw_lr that of everything that is no matrix.
    """
    settings = TrainSettings(
        steps=schedule.steps,
        batch=schedule.batch,
        optimizer=OptimizerSettings(lr=schedule.lr, warmup=schedule.warmup, final_fraction=0.05, clip=1.0),
        seed=seed,
        save_every=every,
        keep=1,
        eval_every=every,
        progress=team.leads,
    )
    folder = out if team.leads else out.with_name(f"{out.name}.{team.rank}")
    trainer = _TeamTrainer(
        model, stage, sources, settings, folder, evaluate=evaluate, adamw_lr=adamw_lr, team=team
    )
    trainer.run()


class _TeamTrainer(Trainer):
    """The package's loop with Muon in AdamW's place and gradients averaged over the team."""

    def __init__(self, *args: Any, adamw_lr: float, team: Team, **kwargs: Any) -> None:
        self.adamw_lr, self.team = adamw_lr, team
        super().__init__(*args, **kwargs)

    def accumulate(self, batches: Sequence[TrainingBatch]) -> tuple[float, float]:
        loss, _ = super().accumulate(batches)
        self.team.average_gradients_(self.parameters.values())
        return loss, gradient_norm(list(self.parameters.values())).item()

    def _resume(self, wanted: bool) -> None:
        slow = (("vision_model.", TOWER_FACTOR),)
        self.optimizer = muon_adamw(self.parameters, self.settings.optimizer.lr, self.adamw_lr, slow)
        super()._resume(wanted)


__all__ = ["LORA", "STAGE1", "prepare_abstractor", "stage2", "train_stage"]
