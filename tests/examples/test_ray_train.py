"""examples/ray_train.py: under Ray the run is the one that torchrun gives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNDER_TORCHRUN = """
import runpy, sys
from owl_fast.training.ranks import joined
with joined():
    train = runpy.run_path("examples/ray_train.py")["train"]
    train({"out": sys.argv[1], "steps": 6, "gpu": False})
"""


def run(*command: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def losses(folder: Path) -> list[Any]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines]


@pytest.mark.slow
def test_the_same_run_under_ray(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra ray: pip install 'owl-fast[ray]'")
    out = run(sys.executable, "examples/ray_train.py", str(tmp_path / "ray"), "--steps", "6")
    assert f"trained: {tmp_path / 'ray'}" in out
    script = tmp_path / "under_torchrun.py"
    script.write_text(UNDER_TORCHRUN)
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    run(*launch, str(script), str(tmp_path / "torchrun"))
    assert [step for step, *_ in losses(tmp_path / "ray")] == [1, 2, 3, 4, 5, 6]
    assert losses(tmp_path / "ray") == losses(tmp_path / "torchrun")
