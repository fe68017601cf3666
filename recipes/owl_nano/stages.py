"""Stages 1 and 2 of the paper: `python -m owl_fast.train` on the files of training_files.py."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from recipes.owl_nano import settings

STAGE_ARGUMENTS: dict[int, tuple[str, ...]] = {
    # The tower is warmed up already. A mirrored or cropped picture is not what its row says.
    1: ("--tower-lr-factor", "0.2", "--no-crops"),
    2: ("--lora-rank", "8", "--lora-alpha", "32", "--lora-dropout", "0"),
}
EVERY = 400  # updates between snapshots, and between evaluations


def train_stage(
    stage: int, model: Path, data: Sequence[Path], held_out: Sequence[Path], out: Path,
    schedule: settings.Schedule, processes: int,
) -> None:  # fmt: skip
    """The command in so many one-thread processes; it goes on from the newest snapshot in `out`.

    CalledProcessError: it failed, and has said why.
    """
    together = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    arguments: dict[str, object] = {
        "stage": stage, "model": model, "out": out, "max-steps": schedule.steps, "batch": schedule.batch,
        "lr": schedule.lr, "warmup": schedule.warmup, "weight-decay": 0, "optimizer": "muon",
        "seed": settings.SEED, "save-every": EVERY, "eval-every": EVERY, "workers": 1, "device": "cpu",
        "dtype": "fp32", "resume": "auto",
    }  # fmt: skip
    command = [sys.executable, *(together if processes > 1 else ()), "-m", "owl_fast.train"]
    for name, value in arguments.items():
        command += [f"--{name}", str(value)]
    command += [*STAGE_ARGUMENTS[stage], "--data", *map(str, data), "--eval-data", *map(str, held_out)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
