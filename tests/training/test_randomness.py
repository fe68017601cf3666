"""Whatever generator a run draws from, and whoever draws: the numbers depend on the seed and the place."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from owl_fast.models.owl import Owl
from owl_fast.training import EncodedSample, Sample, Source
from owl_fast.training.randomness import callers_randomness_kept, seed_everything
from tests.training.owls import made_up
from tests.training.survivor import assert_same_run, shorter, trainer

END = 8


def draw() -> list[float]:
    return [random.random(), float(np.random.rand()), torch.rand(()).item()]


def encode(_sample: Any) -> EncodedSample:
    """Draws pictures and words from all three."""
    sample = made_up(random.randrange(50), pictures=1)
    return EncodedSample(
        sample.token_ids, sample.labels, [torch.randn(3, 8, 8) * float(np.random.rand())], sample.record
    )


def evaluate(_model: Owl, _step: int) -> dict[str, Any]:
    return {"drawn": draw()}


class NoisyAdamW(torch.optim.AdamW):
    """Rounds at random, as optimizers with small states do."""

    def step(self, closure: Any = None) -> Any:
        found = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data += 1e-3 * torch.randn_like(parameter) * random.random()
        return found


def optimizer(parameters: Any, settings: Any) -> torch.optim.Optimizer:
    return NoisyAdamW([{"params": list(parameters.values()), "factor": 1.0}], lr=settings.lr)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_draws_everywhere_resumes_bit_equal(workers: int, tmp_path: Path) -> None:
    more: dict[str, Any] = {"encode": encode, "evaluate": evaluate, "optimizer": optimizer}
    more["sources"] = [Source("raw", lambda index: Sample([], record=str(index)))]
    whole = shorter(steps=END, eval_every=2)
    trainer(tmp_path / "whole", whole, **more).run()
    for stop in (3, 4, 7):
        draw()
        trainer(tmp_path / "run", shorter(steps=END, eval_every=2, workers=workers), **more).run(until=stop)
    trainer(tmp_path / "run", shorter(steps=END, eval_every=2, workers=workers), **more).run()
    assert_same_run(tmp_path / "run", tmp_path / "whole", upto=END)


def test_the_callers_numbers_go_on() -> None:
    seed_everything(1)
    wanted = [draw(), draw()]
    seed_everything(1)
    found = [draw()]
    with callers_randomness_kept(torch.device("cpu")):
        seed_everything("something else")
        assert draw() not in wanted
    assert [*found, draw()] == wanted
