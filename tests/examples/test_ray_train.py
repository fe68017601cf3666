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
ARGUMENTS = (
    *("--stage", "2", "--model", "owl_fast/assets/owl-nano", "--data", "examples/brief.jsonl"),
    *("--max-steps", "6", "--batch", "8", "--eval-every", "0", "--device", "cpu", "--plain"),
)


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
    pytest.importorskip("ray", reason="needs the extra ray: pip install '.[ray]' in the checkout")
    under_ray, under_torchrun = tmp_path / "ray", tmp_path / "torchrun"
    out = run(sys.executable, "examples/ray_train.py", "--", *ARGUMENTS, "--out", str(under_ray))
    assert f"trained: {under_ray / 'final'}" in out
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    run(*launch, "-m", "owl_fast.train", *ARGUMENTS, "--out", str(under_torchrun))
    assert [step for step, *_ in losses(under_ray)] == [1, 2, 3, 4, 5, 6]
    assert losses(under_ray) == losses(under_torchrun)
    for file in ("adapter_model.safetensors", "non_lora.safetensors"):
        assert (under_ray / "final" / file).read_bytes() == (under_torchrun / "final" / file).read_bytes()
