"""What all samples of a micro-batch begin with is computed once, and changes no gradient."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from owl_fast import ops
from owl_fast.lora import LoraConfig
from owl_fast.models.llama import LlamaModel
from owl_fast.models.recompute import LEVELS, Layer, Level
from owl_fast.training import FULL_LLAMA, STAGE1, EncodedSample, Source, Stage, Trainer, TrainSettings, stage2
from owl_fast.training.packing import IGNORED, WORTH_SHARING, pack, shared_length
from tests.training.owls import ROWS, made_up, small_owl

PREFIX = [1, *range(5, 5 + WORTH_SHARING)]  # BOS and more


def after_prefix(index: int, pictures: int = 1) -> EncodedSample:
    sample = made_up(index, pictures=pictures)
    ids = [*PREFIX, *sample.token_ids[1:]]
    labels = [IGNORED] * len(PREFIX) + list(sample.labels[1:])
    return EncodedSample(ids, labels, sample.visual, sample.record)


def test_lay_out_and_take_back() -> None:
    bounds = (0, 5, 9, 12)  # a prefix of 2, then 3, 2 and 1
    shared = ops.SharedPrefix.of(2, bounds)
    x = torch.arange(8.0, dtype=torch.float64)[:, None].requires_grad_()
    whole = shared.lay_out(x)
    assert whole[:, 0].tolist() == [0, 1, 2, 3, 4, 0, 1, 5, 6, 0, 1, 7]
    assert torch.equal(shared.take_back(whole), x)
    assert torch.autograd.gradcheck(shared.lay_out, (x,))
    assert torch.autograd.gradcheck(shared.take_back, (whole.detach().requires_grad_(),))


def test_what_is_shared() -> None:
    """Not beyond a picture, a row that predicts, or a sample's end; nothing short, nothing of one sample."""
    one, two = after_prefix(0), after_prefix(1)
    assert shared_length([one]) == 0
    assert shared_length([one, two]) >= len(PREFIX)
    assert shared_length([made_up(0), made_up(1)]) == 0
    learned = dataclasses.replace(two, labels=[IGNORED, *two.token_ids[1:]])
    assert shared_length([one, learned]) == 0
    end = EncodedSample(PREFIX, [IGNORED] * WORTH_SHARING + PREFIX[-1:])
    assert shared_length([end, one]) == 0
    batch = pack([one, two], ROWS)
    assert len(batch.packed.token_ids) == batch.packed.bounds[-1] - shared_length([one, two])


def gradients(
    stage: Stage, micro: int, level: Level, folder: Path, dtype: torch.dtype
) -> tuple[float, dict[str, Tensor]]:
    settings = TrainSettings(steps=1, batch=6, micro_batch=micro, progress=False)
    source = Source("same beginning", lambda index: after_prefix(index, pictures=1 + index % 2))
    run = Trainer(small_owl(dtype=dtype), stage, [source], settings, folder)
    for layer in run.model.modules():
        if isinstance(layer, Layer):
            layer.level = level
    found = run.accumulate([run.reader(number) for number in run.reader.of_update(0)])
    run.close()
    return found.loss, {n: p.grad for n, p in run.parameters.items() if p.grad is not None}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "stage", [STAGE1, stage2(LoraConfig(dropout=0.0)), FULL_LLAMA], ids=lambda stage: stage.name
)
def test_gradients_are_those_of_each_alone(stage: Stage, level: Level, tmp_path: Path) -> None:
    alone, together = (
        gradients(stage, micro, level, tmp_path / str(micro), torch.float32) for micro in (1, 6)
    )
    assert together[0] == pytest.approx(alone[0], abs=1e-6)
    assert together[1].keys() == alone[1].keys()
    for name, gradient in together[1].items():
        assert (gradient - alone[1][name]).abs().max() <= 1e-6, name


def test_its_rows_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    forward = LlamaModel.forward
    monkeypatch.setattr(
        LlamaModel, "forward", lambda self, x, batch: (seen.append(len(x)), forward(self, x, batch))[1]
    )
    gradients(STAGE1, 6, "whole", tmp_path, torch.float32)
    samples = [after_prefix(index, pictures=1 + index % 2) for index in range(6)]
    rows = sum(len(sample.token_ids) for sample in samples)
    assert seen == [rows - 5 * shared_length(samples)]
