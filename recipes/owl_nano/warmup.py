"""Warm-up of the vision tower, the stand-in for CLIP's pre-training: name what lies under each patch.

Linear heads on the tower's features name shape, color, character, the shape's place in reading order, the
character's place in its word, and the patch's own row and column, which the tower forgets otherwise and no
later phase brings back; one on the class row names the number of shapes. The heads are thrown away. Muon on
the matrices: it learns several times faster here than AdamW.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from owl_fast.models.owl import Owl
from owl_fast.training.ranks import Ranks
from owl_fast.training.sources import derive_seed
from recipes.owl_nano.loop import run_updates
from recipes.owl_nano.pool import Pool
from recipes.owl_nano.settings import Schedule
from recipes.owl_nano.world import MAX_SHAPES

CLASSES = (9, 9, 37, 4, 7, 9, 9)  # of the heads on patches; class 0 is "nothing there"
NAMES = ("shape", "color", "character", "turn", "order", "row", "column", "number")
TURN = NAMES.index("turn")
GROUND_WEIGHT = 0.2  # of patches where there is nothing to name


class Heads(nn.Module):
    """Linear heads: `patch` on the rows of the patches, `picture` on the class row."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch = nn.Linear(width, sum(CLASSES))
        self.picture = nn.Linear(width, MAX_SHAPES + 1)

    def loss(self, features: Tensor, labels: Tensor) -> tuple[Tensor, list[float]]:
        """features (n, 65, E), labels (n, 5, 64) -> the summed mean losses and, per head, accuracy."""
        patch = torch.arange(labels.shape[2])
        places = torch.stack((patch // 8, patch % 8)) + 1
        number = labels[:, TURN].amax(1)
        labels = torch.cat((labels, places.expand(len(labels), -1, -1)), dim=1)
        logits = self.picture(features[:, 0])
        loss = F.cross_entropy(logits, number)
        accuracy = []
        for kind, part in enumerate(self.patch(features[:, 1:]).split(CLASSES, -1)):
            target = labels[:, kind]
            weight = torch.where(target > 0, 1.0, GROUND_WEIGHT)
            each = F.cross_entropy(part.flatten(0, 1), target.flatten(), reduction="none")
            loss = loss + (each * weight.flatten()).sum() / weight.sum()
            named = target > 0
            accuracy.append(float((part.argmax(-1) == target)[named].float().mean()) if named.any() else 1.0)
        return loss, [*accuracy, float((logits.argmax(-1) == number).float().mean())]


def warm_up(model: Owl, pool: Pool, schedule: Schedule, folder: Path, seed: int) -> None:
    """Train the tower in place; snapshots and metrics go to folder."""
    tower, ranks = model.vision_model, Ranks.current()
    torch.manual_seed(seed)
    heads = Heads(model.config.vision.hidden_size)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(derive_seed(seed, "warm-up", step, ranks.rank))
        indices = [rng.randrange(len(pool)) for _ in range(schedule.batch // ranks.size)]
        with torch.autocast("cpu", torch.bfloat16):
            features = tower(pool.pictures(indices))
        value, accuracy = heads.loss(features.float(), pool.patch_labels(indices))
        return value, dict(zip(NAMES, accuracy, strict=True))

    parameters = dict(nn.ModuleDict({"tower": tower, "heads": heads}).named_parameters())
    run_updates(parameters, schedule, folder, loss)
