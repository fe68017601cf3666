"""The command under torchrun: two processes are one run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.train.runs import command, run, write_data


def lines(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_two_processes(tmp_path: Path) -> None:
    """Batches and losses of one process; what is bad is looked for once, and left out on both."""
    data = write_data(tmp_path)
    rows = (data / "mixed.jsonl").read_text(encoding="utf-8")
    (data / "mixed.jsonl").write_text(rows + '{"messages": []}\n', encoding="utf-8")
    more = ("--skip-bad", "--bad-cap", "0.1", "--lora-dropout", "0", "--micro-batch", "1", "--lr", "1e-4")
    assert run(data, tmp_path / "one", *more) == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, "-m", "owl_fast.train", *command(data, tmp_path / "two", *more)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for alone, shared in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], abs=1e-6)
        assert (shared["labelled"], shared["rows"]) == (alone["labelled"], alone["rows"])
    assert (tmp_path / "two" / "final" / "adapter_model.safetensors").exists()
