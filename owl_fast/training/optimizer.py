"""AdamW (arXiv 1711.05101) with the paper's settings, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class OptimizerSettings:
    """lr: peak learning rate; warmup: updates up to the peak, then a cosine down to lr * final_fraction.

    clip: largest gradient norm, None for no clipping. factors: (name prefix, factor) pairs; the first prefix
    a parameter's name begins with scales its learning rate. Decay falls on every trained tensor.
    """

    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.1
    warmup: int = 0
    final_fraction: float = 0.0
    clip: float | None = 1.0
    factors: tuple[tuple[str, float], ...] = ()


def learning_rate(step: int, steps: int, settings: OptimizerSettings) -> float:
    """Learning rate of update `step` (0 is the first) of `steps`."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    done = min(1.0, (step - settings.warmup) / max(1, steps - settings.warmup))
    fraction = settings.final_fraction
    return settings.lr * (fraction + (1 - fraction) * 0.5 * (1 + math.cos(math.pi * done)))


def parameter_groups(
    parameters: Mapping[str, nn.Parameter], settings: OptimizerSettings
) -> list[dict[str, Any]]:
    """One for each learning-rate factor; set_learning_rate fills in the rates."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        factor = next((f for prefix, f in settings.factors if name.startswith(prefix)), 1.0)
        groups.setdefault(factor, []).append(parameter)
    return [{"params": group, "factor": factor} for factor, group in groups.items()]


def build_adamw(parameters: Mapping[str, nn.Parameter], settings: OptimizerSettings) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameter_groups(parameters, settings),
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,  # without temporary copies of everything that trains
    )


def adamw_bytes(parameters: Mapping[str, Tensor]) -> tuple[int, int]:
    """Bytes of both states; a step needs nothing besides."""
    return 8 * sum(parameter.numel() for parameter in parameters.values()), 0


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Euclidean norm over all gradients together."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """The optimizer's state as "parameter|entry" -> tensor."""
    return {
        f"{name}|{entry}": tensor
        for name, parameter in parameters.items()
        for entry, tensor in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
) -> None:
    """Put back what optimizer_tensors gave."""
    numbers = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        name, entry = key.split("|")
        state.setdefault(numbers[id(parameters[name])], {})[entry] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
