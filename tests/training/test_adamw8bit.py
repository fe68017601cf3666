"""AdamW with 8-bit states: the numbers they stand for, beside AdamW, and through a snapshot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from owl_fast.training import OptimizerSettings, Source, Trainer, TrainSettings, stage2
from owl_fast.training import adamw8bit as module
from owl_fast.training.adamw8bit import BLOCK, AdamW8bit, build_adamw8bit, dequantize, fractions, quantize
from owl_fast.training.optimizer import build_adamw, load_optimizer_tensors, optimizer_tensors
from tests.training.owls import made_up, small_owl, weights

SETTINGS = OptimizerSettings(lr=3e-3, weight_decay=0.1)


@pytest.fixture(autouse=True)
def everything_in_8_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALL", 0)


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_fractions_are_256_rising_numbers(signed: bool) -> None:
    table = fractions(signed)
    assert len(table) == 256
    assert bool((table.diff() > 0).all())
    assert {0.0, 1.0} <= set(table.tolist())


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])
def test_numbers_come_back_close(signed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8 * BLOCK, generator=generator) * torch.logspace(-8, 3, 8).repeat_interleave(BLOCK)
    x = x if signed else x.square()
    back = dequantize(*quantize(x, signed), signed)
    largest = x.view(-1, BLOCK).abs().amax(1).repeat_interleave(BLOCK)
    upper = x.abs() > 0.1 * largest  # the uppermost power of ten: 64 or 128 equal steps
    steps = 64 if signed else 128
    assert ((back - x).abs()[upper] <= 0.51 * 0.9 / steps * largest[upper]).all()
    assert ((back - x).abs() <= 0.5 * x.abs() + 1e-6 * largest).all()
    again = dequantize(*quantize(back, signed), signed)
    assert torch.allclose(again, back, rtol=1e-6, atol=0.0)


def test_only_zero_becomes_zero_without_a_sign() -> None:
    x = torch.zeros(BLOCK)
    x[0], x[1] = 1.0, 1e-20
    back = dequantize(*quantize(x, signed=False), signed=False)
    assert back[1] > 0
    assert not back[2:].any()
    assert not dequantize(*quantize(torch.zeros(BLOCK), signed=False), signed=False).any()


def problem() -> tuple[Tensor, Tensor, nn.Parameter]:
    """Least squares with columns of very different lengths; one block and a part of one."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, 300, generator=generator) * torch.logspace(-2, 0, 300)
    return x, x @ torch.randn(300, generator=generator), nn.Parameter(torch.zeros(300))


def losses(kind: str, steps: int) -> list[float]:
    x, y, w = problem()
    optimizer = (build_adamw if kind == "adamw" else build_adamw8bit)({"w": w}, SETTINGS)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (x @ w - y).square().mean()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def test_it_learns_as_adamw_does() -> None:
    theirs, ours = losses("adamw", 400), losses("adamw8bit", 400)
    assert theirs[-1] < 0.3 * theirs[0]
    for step in (50, 100, 200, 399):
        assert ours[step] == pytest.approx(theirs[step], abs=0.02 * theirs[0])


def test_a_step_without_gradient_stays_small() -> None:
    """Its mean is still there, and its square must be as well."""
    parameter = nn.Parameter(torch.zeros(2 * BLOCK))
    optimizer = AdamW8bit([parameter], lr=1e-3, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.0)
    parameter.grad = torch.full((2 * BLOCK,), 1e-5)
    parameter.grad[0] = 1.0
    optimizer.step()
    before = parameter.detach().clone()
    parameter.grad = torch.zeros(2 * BLOCK)
    optimizer.step()
    assert (parameter - before).abs().max() < 2e-3


def test_small_tensors_are_adamw_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALL", 300)
    assert losses("adamw8bit", 20) == pytest.approx(losses("adamw", 20), rel=1e-5)


def test_states_take_a_byte_a_number() -> None:
    parameter = nn.Parameter(torch.zeros(10 * BLOCK))
    optimizer = build_adamw8bit({"w": parameter}, SETTINGS)
    parameter.grad = torch.ones(10 * BLOCK)
    optimizer.step()
    held = sum(t.nbytes for t in optimizer_tensors(optimizer, {"w": parameter}).values())
    assert held == 2 * 10 * BLOCK + 2 * 4 * 10 + 4


def test_state_goes_out_and_comes_back() -> None:
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(3, 700, generator=generator)
    first, second = ({"w": nn.Parameter(torch.ones(700))} for _ in range(2))
    optimizers = [build_adamw8bit(found, SETTINGS) for found in (first, second)]
    for gradient in given[:2]:
        first["w"].grad = gradient.clone()
        optimizers[0].step()
    second["w"].data.copy_(first["w"].data)
    tensors = {key: value.clone() for key, value in optimizer_tensors(optimizers[0], first).items()}
    load_optimizer_tensors(optimizers[1], second, tensors)
    for optimizer, found in zip(optimizers, (first, second), strict=True):
        found["w"].grad = given[2].clone()
        optimizer.step()
    assert torch.equal(first["w"], second["w"])
    for key, value in optimizer_tensors(optimizers[1], second).items():
        other = optimizer_tensors(optimizers[0], first)[key]
        assert value.dtype == other.dtype
        assert torch.equal(value, other)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    def trainer(folder: Path) -> Trainer:
        source = Source.of("made up", [made_up(i, i % 2) for i in range(8)])
        settings = TrainSettings(4, 2, optimizer=SETTINGS, save_every=2, progress=False)
        return Trainer(small_owl(), stage2(), [source], settings, folder, optimizer=build_adamw8bit)

    whole = trainer(tmp_path / "whole")
    whole.run()
    trainer(tmp_path / "parts").run(until=2)
    resumed = trainer(tmp_path / "parts")
    assert resumed.step == 2
    resumed.run()
    found, expected = weights(resumed.model), weights(whole.model)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
