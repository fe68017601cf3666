"""Muon for matrices and AdamW for the rest, as one optimizer.

Muon (K. Jordan, 2024): the momentum of a matrix, made nearly orthogonal by five Newton-Schulz steps, is the
update. Groups carry "factor", which the training loop multiplies into the learning rate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearly orthogonal matrix with the same row and column spaces; (R, C) -> (R, C)."""
    a, b, c = _NEWTON_SCHULZ
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x.bfloat16()  # twice as fast, and an update need not be exact
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x.T if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)


class MuonAdamW(torch.optim.Optimizer):
    """Groups with kind "muon" hold matrices only; all others take AdamW steps."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay,
            "kind": "adamw", "factor": 1.0,
        }  # fmt: skip
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            update = self._muon if group["kind"] == "muon" else self._adamw
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    update(parameter, parameter.grad, group)

    def _muon(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        average = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        looked_ahead = gradient.lerp(average, group["momentum"])
        scale = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
        parameter.add_(orthogonal(looked_ahead), alpha=-group["lr"] * scale)

    def _adamw(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        first, second = group["betas"]
        state["step"] += 1
        count = float(state["step"])
        mean = state["mean"].lerp_(gradient, 1 - first)
        square = state["square"].lerp_(gradient.square(), 1 - second)
        denominator = (square / (1 - second**count)).sqrt_().add_(group["eps"])
        parameter.addcdiv_(mean, denominator, value=-group["lr"] / (1 - first**count))


def muon_adamw(
    parameters: Mapping[str, nn.Parameter],
    lr: float,
    adamw_lr: float,
    slow: tuple[tuple[str, float], ...] = (),
    decay: float = 0.0,
) -> MuonAdamW:
    """Matrices inside the layers under Muon at lr; embedding, head, low-rank pairs and vectors under AdamW.

    decay: Muon's weight decay, times the learning rate per update.
    slow: (prefix of a parameter's name, factor on its learning rate); the first that fits counts.
    """
    groups: dict[tuple[str, float], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        inner = parameter.ndim == 2 and not any(
            part in name for part in (".lora.", "embed_tokens", "lm_head", "heads.")
        )
        factor = next((f for prefix, f in slow if name.startswith(prefix)), 1.0)
        key = ("muon", factor) if inner else ("adamw", factor * adamw_lr / lr)
        groups.setdefault(key, []).append(parameter)
    return MuonAdamW(
        [
            {
                "params": group,
                "kind": kind,
                "factor": factor,
                "weight_decay": decay if kind == "muon" else 0.0,
            }
            for (kind, factor), group in groups.items()
        ],
        lr,
    )
