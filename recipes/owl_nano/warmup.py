"""Warm-up of the vision tower, the stand-in for CLIP's pre-training: name what lies under each patch.

Linear heads on the tower's features name shape, color, character, the character's place in its word, and the
patch's own row and column, which the tower forgets otherwise and no later phase brings back. The heads are
thrown away. Muon on the matrices: it learns several times faster here than AdamW.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from owl_fast.models.owl import Owl
from recipes.owl_nano.language import lr_factor
from recipes.owl_nano.parallel import ALONE, Team
from recipes.owl_nano.pool import Pool
from recipes.owl_nano.settings import Schedule

CLASSES = (9, 9, 37, 7, 9, 9)
NAMES = ("shape", "color", "character", "order", "row", "column")
GROUND_WEIGHT = 0.2  # of patches where there is nothing to name


def heads_loss(heads: nn.Linear, features: Tensor, labels: Tensor) -> tuple[Tensor, list[float]]:
    """features (n, 64, E), labels (n, 4, 64) -> the mean loss and, per head, accuracy on named patches."""
    patch = torch.arange(labels.shape[2])
    places = torch.stack((patch // 8, patch % 8)) + 1
    labels = torch.cat((labels, places.expand(len(labels), -1, -1)), dim=1)
    loss = torch.zeros(())
    accuracy = []
    logits = heads(features)
    for kind, part in enumerate(logits.split(CLASSES, -1)):
        target = labels[:, kind]
        weight = torch.where(target > 0, 1.0, GROUND_WEIGHT)
        each = F.cross_entropy(part.flatten(0, 1).float(), target.flatten(), reduction="none")
        loss = loss + (each * weight.flatten()).sum() / weight.sum()
        named = target > 0
        accuracy.append(float((part.argmax(-1) == target)[named].float().mean()) if named.any() else 1.0)
    return loss, accuracy


def warm_up(
    model: Owl, pool: Pool, schedule: Schedule, out: Path, seed: int, team: Team = ALONE, every: int = 100
) -> None:
    tower = model.vision_model
    torch.manual_seed(seed)
    heads = nn.Linear(model.config.vision.hidden_size, sum(CLASSES))
    matrices = [p for n, p in tower.named_parameters() if p.ndim == 2]
    ids = {id(p) for p in matrices}
    rest = [p for p in [*tower.parameters(), *heads.parameters()] if id(p) not in ids]
    opts = [
        torch.optim.Muon(matrices, lr=schedule.lr, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    base = [g["lr"] for o in opts for g in o.param_groups]
    rng = random.Random(seed + team.rank)
    start, recent = time.time(), []
    for step in range(schedule.steps):
        if step % 50 == 0:
            pool.refresh()
        factor = lr_factor(step, schedule)
        for group, lr in zip([g for o in opts for g in o.param_groups], base, strict=True):
            group["lr"] = lr * factor
        indices = [rng.randrange(len(pool)) for _ in range(schedule.batch)]
        with torch.autocast("cpu", torch.bfloat16):
            features = tower(pool.pictures(indices))[:, 1:]
        loss, accuracy = heads_loss(heads, features.float(), pool.patch_labels(indices))
        for o in opts:
            o.zero_grad(set_to_none=True)
        loss.backward()
        team.average_gradients_([*matrices, *rest])
        for o in opts:
            o.step()
        recent.append([loss.item(), *accuracy])
        if team.leads and (step + 1) % every == 0:
            mean = torch.tensor(recent[-every:]).mean(0).tolist()
            values = {k: round(v, 3) for k, v in zip(("loss", *NAMES), mean, strict=True)}
            print(
                json.dumps({"step": step + 1, "pool": len(pool), "s": round(time.time() - start), **values}),
                flush=True,
            )
    if team.leads:
        torch.save({"tower": tower.state_dict(), "heads": heads.state_dict()}, out)
