"""The loop of the phases before the paper's stages."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from recipes.owl_nano import loop
from recipes.owl_nano.settings import Schedule

STEPS = 6


def train(folder: Path, stop: int = STEPS) -> tuple[nn.Module, dict[str, float]]:
    """A small regression whose loss remembers a running mean; the process "dies" at update `stop`."""
    torch.manual_seed(1)
    model, memory = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)), {"mean": 0.0}

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        if step == stop:
            raise KeyboardInterrupt
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        value = (model(x) - x.sum(1, keepdim=True) + memory["mean"]).square().mean()
        memory["mean"] = 0.5 * (memory["mean"] + value.item())
        return value, {"largest": x.max().item()}

    schedule = Schedule(steps=STEPS, batch=16, lr=0.02, warmup=2)
    with suppress(KeyboardInterrupt):
        loop.run_updates(dict(model.named_parameters()), schedule, folder, loss, memory)
    return model, memory


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_goes_on_from_its_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    monkeypatch.setattr(loop, "EVERY", 2)
    whole, memory = train(tmp_path / "whole")
    train(tmp_path / "resumed", stop)
    resumed, resumed_memory = train(tmp_path / "resumed")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert memory == resumed_memory
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "resumed")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3


def test_leaves_one_line_of_metrics(tmp_path: Path) -> None:
    train(tmp_path)
    (line,) = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert line["step"] == STEPS
    assert {"loss", "largest", "mean", "seconds"} <= line.keys()
