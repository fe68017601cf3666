"""Muon: its updates, what takes it, how it learns, and through a snapshot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from owl_fast.training import STAGE1, OptimizerSettings, Source, Trainer, TrainSettings, stage2
from owl_fast.training.muon import MuonAdamW, build_muon, muon_bytes, orthogonal, takes_muon
from owl_fast.training.optimizer import build_adamw, optimizer_tensors, set_learning_rate
from owl_fast.training.stages import Stage
from tests.training.owls import made_up, small_owl, weights

SETTINGS = OptimizerSettings(lr=3e-3, weight_decay=0.0, factors=(("vision_model.", 0.2),))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(48, 48), (96, 32), (32, 96), (1, 7)], ids=str)
def test_singular_values_become_equal(shape: tuple[int, int]) -> None:
    left, values, right = torch.linalg.svd(noise(*shape), full_matrices=False)
    matrix = left @ torch.diag(torch.logspace(-1, 0, len(values))) @ right
    found = torch.linalg.svdvals(orthogonal(matrix))
    assert orthogonal(matrix).shape == shape
    assert found.min() > 0.6
    assert found.max() < 1.3


@pytest.mark.parametrize("shape", [(64, 64), (192, 64), (64, 192)], ids=str)
def test_an_update_is_as_large_as_adamws(shape: tuple[int, int]) -> None:
    """0.2 of the learning rate in the mean, which is what AdamW's entries come to; any shape."""
    matrix = nn.Parameter(torch.zeros(shape))
    matrix.grad = noise(*shape) * 1e3
    build_muon({"layers.0.weight": matrix}, SETTINGS).step()
    assert matrix.detach().square().mean().sqrt() == pytest.approx(0.2 * SETTINGS.lr, rel=0.25)


def test_the_spectral_scale_bounds_singular_values() -> None:
    matrix = nn.Parameter(torch.zeros(128, 32))
    matrix.grad = noise(128, 32)
    MuonAdamW([{"params": [matrix], "kind": "muon"}], lr=0.01, scale="spectral").step()
    values = torch.linalg.svdvals(matrix.detach())
    assert values.tolist() == pytest.approx([0.02] * 32, rel=0.4)


def test_vectors_are_adamws() -> None:
    found = []
    for build in (build_adamw, build_muon):
        vector = nn.Parameter(noise(40))
        optimizer = build({"norm.weight": vector}, OptimizerSettings(lr=3e-3, weight_decay=0.1))
        for step in range(5):
            vector.grad = noise(40, seed=step)
            optimizer.step()
        found.append(vector.detach())
    assert torch.allclose(*found, rtol=1e-5, atol=1e-7)


def trained(stage: Stage) -> dict[str, nn.Parameter]:
    return stage.apply(small_owl())


def test_what_takes_muon_in_the_stages() -> None:
    one = {name: takes_muon(name, p) for name, p in trained(STAGE1).items()}
    assert one["vision_model.encoder.layers.0.self_attn.query_key_value.weight"]
    assert one["abstractor.visual_fc.weight"]
    assert not one["query_tokens"]
    assert not any(muon for name, muon in one.items() if name.endswith("bias"))
    two = {name: takes_muon(name, p) for name, p in trained(stage2()).items()}
    assert any(two.values())
    assert not any(muon for name, muon in two.items() if ".lora." in name)


def test_the_tower_learns_at_its_own_rate() -> None:
    parameters = trained(STAGE1)
    optimizer = build_muon(parameters, SETTINGS)
    set_learning_rate(optimizer, 1e-2)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(parameters)
    for name, parameter in parameters.items():
        expected = 2e-3 if name.startswith("vision_model.") else 1e-2
        assert rates[id(parameter)] == pytest.approx(expected), name


def trainer(folder: Path, stage: Stage) -> Trainer:
    source = Source.of("made up", [made_up(i, 1) for i in range(8)])
    settings = TrainSettings(4, 2, optimizer=SETTINGS, save_every=2, progress=False)
    return Trainer(small_owl(), stage, [source], settings, folder, optimizer=build_muon)


@pytest.mark.parametrize("stage", [STAGE1, stage2()], ids=["stage1", "stage2"])
def test_a_resumed_run_is_the_uninterrupted_one(stage: Stage, tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", stage)
    whole.run()
    first = trainer(tmp_path / "parts", stage)
    first.run(until=2)
    first.close()
    resumed = trainer(tmp_path / "parts", stage)
    assert resumed.step == 2
    resumed.run()
    found, expected = weights(resumed.model), weights(whole.model)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("stage", [STAGE1, stage2()], ids=["stage1", "stage2"])
def test_states_take_what_the_plan_says(stage: Stage, tmp_path: Path) -> None:
    run = trainer(tmp_path, stage)
    run.run(until=1)
    held = optimizer_tensors(run.optimizer, run.parameters)
    nbytes = sum(tensor.nbytes for name, tensor in held.items() if not name.endswith("|step"))
    assert nbytes == muon_bytes(run.parameters)[0]
