"""Muon for the matrices inside the layers and AdamW for the rest, as one optimizer.

Muon (K. Jordan, 2024): the momentum of a matrix, made nearly orthogonal by five Newton-Schulz steps, is the
update. Scaled as in arXiv 2502.16982 its entries are as large as AdamW's, so that one learning rate does for
both kinds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from owl_fast.training.optimizer import OptimizerSettings, parameter_groups

STEPS, MOMENTUM = 5, 0.95
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_ADAMWS = (".lora.", "embed_tokens", "lm_head")  # matrices whose rows or ranks are learned one by one


def orthogonal(matrix: Tensor) -> Tensor:
    """The nearly orthogonal matrix with the same row and column spaces; (R, C) -> (R, C)."""
    a, b, c = _NEWTON_SCHULZ
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x.bfloat16()  # twice as fast, and an update need not be exact
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(STEPS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x.T if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)


def takes_muon(name: str, parameter: Tensor) -> bool:
    """Matrices, but for embedding, head and low-rank pairs."""
    return parameter.ndim == 2 and not any(part in name for part in _ADAMWS)


class MuonAdamW(torch.optim.Optimizer):
    """Groups with kind "muon" hold matrices only; all others take AdamW steps.

    scale: "rms" makes the entries of a Muon update as large as AdamW's, 0.2 of the learning rate in the mean;
    "spectral" makes its singular values sqrt(max(1, R / C)) of the learning rate.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        scale: str = "rms",
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
            "scale": scale, "kind": "adamw", "factor": 1.0,
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
        average = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        looked_ahead = gradient.lerp(average, MOMENTUM)
        rows, columns = parameter.shape
        scale = 0.2 * sqrt(max(rows, columns)) if group["scale"] == "rms" else max(1.0, rows / columns) ** 0.5
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


def build_muon(parameters: Mapping[str, nn.Parameter], settings: OptimizerSettings) -> MuonAdamW:
    """Decay falls on every trained tensor, as with AdamW."""
    parts: dict[str, dict[str, nn.Parameter]] = {"muon": {}, "adamw": {}}
    for name, parameter in parameters.items():
        parts["muon" if takes_muon(name, parameter) else "adamw"][name] = parameter
    groups = [
        {**group, "kind": kind} for kind, part in parts.items() for group in parameter_groups(part, settings)
    ]
    return MuonAdamW(
        groups, settings.lr, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay
    )


def muon_bytes(parameters: Mapping[str, Tensor]) -> tuple[int, int]:
    """Bytes of the states (one number in float32 for each of a matrix, else two), and the most in a step."""
    states, step = 0, 0
    for name, parameter in parameters.items():
        count = parameter.numel()
        if takes_muon(name, parameter):
            square = min(parameter.shape) ** 2
            states += 4 * count
            # The gradient looked ahead in float32; in bfloat16 x, a * x, their sum, and three squares.
            step = max(step, 4 * count + 2 * (3 * count + 3 * square))
        else:
            states += 8 * count
            step = max(step, 8 * count)
    return states, step
