"""Schedule, learning-rate factors, and the optimizer's state as tensors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from owl_fast.training.optimizer import (
    OptimizerSettings,
    build_adamw,
    learning_rate,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)

SETTINGS = OptimizerSettings(lr=1.0, warmup=4, final_fraction=0.1)


def test_schedule() -> None:
    rates = [learning_rate(step, 104, SETTINGS) for step in range(105)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[54] == pytest.approx(0.55)
    assert rates[104] == pytest.approx(0.1)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_a_final_fraction_of_one_is_constant() -> None:
    settings = OptimizerSettings(lr=0.5, final_fraction=1.0)
    assert {learning_rate(step, 10, settings) for step in range(10)} == {0.5}


def parameters() -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.ones(3)) for name in ("eye.a", "brain.b", "eye.c")}


def test_factors_scale_the_rate() -> None:
    found = parameters()
    optimizer = build_adamw(found, OptimizerSettings(factors=(("eye.", 0.2),), weight_decay=0.0))
    set_learning_rate(optimizer, 0.1)
    for parameter in found.values():
        parameter.grad = torch.ones(3)
    optimizer.step()
    # AdamW's first step is the learning rate itself.
    assert [round(1 - p[0].item(), 4) for p in found.values()] == [0.02, 0.1, 0.02]


def test_state_goes_out_and_comes_back() -> None:
    settings = OptimizerSettings(factors=(("eye.", 0.5),))
    first, second = parameters(), parameters()
    optimizers = [build_adamw(p, settings) for p in (first, second)]
    generator = torch.Generator().manual_seed(0)
    for parameter in first.values():
        parameter.grad = torch.randn(3, generator=generator)
    optimizers[0].step()
    tensors = {k: v.clone() for k, v in optimizer_tensors(optimizers[0], first).items()}
    assert {key.split("|")[1] for key in tensors} == {"step", "exp_avg", "exp_avg_sq"}
    load_optimizer_tensors(optimizers[1], second, tensors)
    for name, parameter in second.items():
        parameter.data.copy_(first[name].detach())
        parameter.grad = first[name].grad
    for optimizer in optimizers:
        optimizer.step()
    assert all(torch.equal(first[name], second[name]) for name in first)
