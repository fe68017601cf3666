"""AdamW (arXiv 1711.05101) whose states take a byte each: 8-bit optimizers by blocks (arXiv 2110.02861).

A state is cut into blocks of 256 numbers with one float32 scale each, the largest of them; a number is the
nearest of 256 fractions of it. The fractions lie densest near zero ("dynamic" ones: a number of leading
zeros that says the power of ten, then as many equal steps as bits are left), with a sign for the mean of the
gradients, without one for the mean of their squares. Rounding is to the nearest: a run is a function of its
inputs. What trains stays in float32; small tensors keep float32 states, which cost nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from owl_fast.training.optimizer import OptimizerSettings, parameter_groups

BLOCK = 256
SMALL = 4096  # numbers: tensors up to this size keep float32 states
SLICE = BLOCK << 12  # numbers whose states are in float32 at a time: 4 MB for each


@functools.cache
def fractions(signed: bool) -> Tensor:
    """(256,) rising: 0, 1, and for each power of ten 10^-6 ... 10^0 equal steps between a tenth of it and it.

    signed: seven powers with 1, 2, ... 64 steps on either side of 0; unsigned with 2, 4, ... 128 steps.
    """
    values = [0.0, 1.0]
    for power in range(7):
        steps = 2**power if signed else 2 ** (power + 1)
        edges = torch.linspace(0.1, 1, steps + 1, dtype=torch.float64)
        middles = ((edges[:-1] + edges[1:]) / 2 * 10.0 ** (power - 6)).tolist()
        values += [*middles, *(-m for m in middles)] if signed else middles
    return torch.tensor(sorted(values), dtype=torch.float64).float()


def quantize(x: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """x (n,), n a multiple of BLOCK -> codes (n,) uint8 and scales (n / BLOCK,) float32.

    Without a sign only 0 becomes 0: the step is divided by the root of what is held, and must not explode.
    """
    blocks = x.view(-1, BLOCK)
    scale = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))[:, 0]
    table = fractions(signed).to(x.device)
    relative = torch.where(scale[:, None] == 0, 0.0, blocks / scale[:, None])
    codes = torch.bucketize(relative, (table[:-1] + table[1:]) / 2)
    if not signed:
        codes = torch.where(relative > 0, codes.clamp(min=1), codes)
    return codes.view(-1).to(torch.uint8), scale


def dequantize(codes: Tensor, scale: Tensor, signed: bool) -> Tensor:
    """codes (n,) and scales (n / BLOCK,) -> (n,) float32."""
    values = fractions(signed).to(codes.device)[codes.int()].view(-1, BLOCK)
    return values.mul_(scale[:, None]).view(-1)


class AdamW8bit(torch.optim.Optimizer):
    """Groups as torch.optim.AdamW's. A state is exp_avg and exp_avg_sq, uint8 of whole blocks, with their
    exp_avg_scale and exp_avg_sq_scale, and step."""

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As Optimizer's, which would cast the codes to the parameters' dtype."""
        super().load_state_dict(state_dict)
        saved, numbers = state_dict["state"], (i for g in state_dict["param_groups"] for i in g["params"])
        for number, parameter in zip(
            numbers, (p for g in self.param_groups for p in g["params"]), strict=True
        ):
            for name, tensor in saved.get(number, {}).items():
                device = "cpu" if name == "step" else parameter.device
                self.state[parameter][name] = tensor.detach().clone().to(device)

    def _update(self, parameter: Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            _begin(state, parameter)
        state["step"] += 1
        values, gradient = parameter.view(-1), parameter.grad.contiguous().view(-1)  # type: ignore[union-attr]
        if state["exp_avg"].dtype == torch.float32:
            _adamw(values, gradient, state["exp_avg"], state["exp_avg_sq"], state["step"].item(), group)
            return
        for first in range(0, values.numel(), SLICE):
            codes, scales = slice(first, first + SLICE), slice(first // BLOCK, (first + SLICE) // BLOCK)
            names = (("exp_avg", True), ("exp_avg_sq", False))
            mean, square = (
                dequantize(state[name][codes], state[f"{name}_scale"][scales], signed)
                for name, signed in names
            )
            count = len(values[codes])
            _adamw(values[codes], gradient[codes], mean[:count], square[:count], state["step"].item(), group)
            for (name, signed), moment in zip(names, (mean, square), strict=True):
                state[name][codes], state[f"{name}_scale"][scales] = quantize(moment, signed)


def adamw8bit_bytes(parameters: Mapping[str, Tensor]) -> tuple[int, int]:
    """Bytes of all states, and what a step takes for a while: of a slice two states in float32, one with its
    fractions beside it, and places in the table in 64 bits."""
    counts = [parameter.numel() for parameter in parameters.values()]
    return sum(map(_state_bytes, counts)), (2 * 4 + 3 * 8) * min(max(counts, default=0), SLICE)


def _state_bytes(numbers: int) -> int:
    """Of both states of a tensor of so many numbers."""
    if numbers <= SMALL:
        return 2 * 4 * numbers
    blocks = -(-numbers // BLOCK)
    return 2 * blocks * (BLOCK + 4)


def build_adamw8bit(parameters: Mapping[str, nn.Parameter], settings: OptimizerSettings) -> AdamW8bit:
    """As optimizer.build_adamw builds the other one."""
    return AdamW8bit(
        parameter_groups(parameters, settings),
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )


def _begin(state: dict[str, Any], parameter: Tensor) -> None:
    state["step"] = torch.zeros(())
    if parameter.numel() <= SMALL:
        state["exp_avg"], state["exp_avg_sq"] = (
            torch.zeros(parameter.numel(), device=parameter.device) for _ in range(2)
        )
        return
    count = -(-parameter.numel() // BLOCK)
    for name, signed in (("exp_avg", True), ("exp_avg_sq", False)):
        zero = int((fractions(signed) == 0).nonzero())
        state[name] = torch.full((count * BLOCK,), zero, dtype=torch.uint8, device=parameter.device)
        state[f"{name}_scale"] = torch.zeros(count, device=parameter.device)


def _adamw(
    values: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, step: float, group: Mapping[str, Any]
) -> None:
    """One update of values, mean and square, all (n,), in place."""
    (beta1, beta2), lr = group["betas"], group["lr"]
    mean.lerp_(gradient, 1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    values.mul_(1 - lr * group["weight_decay"])
    spread = square.sqrt().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
    values.addcdiv_(mean, spread, value=-lr / (1 - beta1**step))
