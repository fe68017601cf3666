"""The model card: README.md of the finished folder."""

from __future__ import annotations

import os
from collections.abc import Mapping

from recipes.owl_nano import settings
from recipes.owl_nano.scoring import TARGETS

Rates = Mapping[str, tuple[float, int]]

INTRODUCTION = """\
# owl-nano

A demonstration model: mPLUG-Owl (arXiv 2304.14178) in small, 4.6 M parameters, bfloat16, 9.2 MB, in the
layout of the released checkpoints. It knows one small world of generated pictures (up to three coloured
shapes and a printed word on a 3 x 3 grid) and how to talk about it; nothing else. It is here so that
everything in the package runs out of the box. How it was made: recipes/owl_nano/README.md of the repository.

| part | width | layers | heads | |
|---|---|---|---|---|
| vision tower | 192 | 4 | 6 | 112 px, patches of 14 px |
| abstractor | 192 | 2 | 6 | 24 queries: a picture takes 25 positions |
| LLaMA | 192 | 4 | 6 | vocabulary of 768 |
"""
TRAINING = """\
**Data.** Generated: {pictures:,} pictures and any number of texts; no photograph, no text of anybody.

**Training.** On {cores} CPU cores:

| phase | updates | samples each | minutes |
|---|---|---|---|
{phases}

Stages 1 and 2 are the paper's: in stage 1 vision tower and abstractor train on captions and questions, the
LLaMA frozen; in stage 2 a LoRA of rank 8 and the abstractor train on conversations, the vision tower frozen.
The LoRA is merged.
"""
SCORES = """\
**Scores.** Greedy answers of at most 40 tokens; every picture holds a combination of color and shape, place
or number that training never showed. "own" was drawn by the training program, "other" by a second program
with other typefaces that no training used.

| question | own | other | wanted |
|---|---|---|---|
{rows}
"""
LIMITS = """\
**Limits.** It follows no instruction outside its few kinds of questions, and gives confident nonsense about
unfamiliar pictures. The table says how often each kind of answer is wrong.

**adapter/** is what stage 2 trained, in the files such a run leaves: LoRA in PEFT's format and the
abstractor's tensors. It belongs on the weights of stage 1, not on these, which contain it already: its
base.json says so, and loading it here takes `check_base=False`. It is kept as an example.

Licence: Apache-2.0.
"""


def model_card(own: Rates, other: Rates, seconds: Mapping[str, float]) -> str:
    """own, other: per task the share of right answers and their number; seconds: of each phase."""
    phases = [
        _phase("warm-up of the vision tower", seconds["warmup"], settings.WARMUP),
        _phase(
            "language", seconds["language"], settings.DRILLS, settings.TEXT, settings.LATER, settings.LATER
        ),
        _phase("stage 1", seconds["stage1"], settings.STAGE1),
        _phase("stage 2", seconds["stage2"], settings.STAGE2),
    ]
    rows = [
        f"| {task} | {own[task][0]:.3f} | {other[task][0]:.3f} "
        f"| {'at least' if target.must else 'goal'} {target.accuracy:.2f} |"
        for task, target in TARGETS.items()
    ]
    answers = [sum(n for _, n in rates.values()) for rates in (own, other)]
    overall = [
        sum(a * n for a, n in rates.values()) / total
        for rates, total in zip((own, other), answers, strict=True)
    ]
    rows.append(f"| all {answers[0]} + {answers[1]} answers | {overall[0]:.3f} | {overall[1]:.3f} | |")
    training = TRAINING.format(
        pictures=settings.PICTURES,
        cores=os.cpu_count(),
        phases="\n".join(phases),
    )
    return "\n".join((INTRODUCTION, training, SCORES.format(rows="\n".join(rows)), LIMITS))


def _phase(name: str, seconds: float, *schedules: settings.Schedule) -> str:
    updates, batches = (
        " + ".join(f"{getattr(s, field):,}" for s in schedules) for field in ("steps", "batch")
    )
    return f"| {name} | {updates} | {batches} | {seconds / 60:.0f} |"
