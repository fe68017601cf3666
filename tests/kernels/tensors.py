"""Inputs for the tests of kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tests.tolerances import assert_as_good_as_torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def random(
    *shape: int, dtype: torch.dtype = torch.float32, device: torch.device, seed: int = 0, scale: float = 1.0
) -> Tensor:
    """Normal values, the same on every device."""
    generator = torch.Generator().manual_seed(seed + sum(i * n for i, n in enumerate(shape, 1)))
    return (torch.randn(shape, generator=generator) * scale).to(device, dtype)


def strided(x: Tensor) -> Tensor:
    """The same values as a view of a larger tensor that is NaN everywhere else."""
    wider = x.new_full((*x.shape[:-1], x.shape[-1] + 3), float("nan"))
    view = wider[..., 1:-2]
    view.copy_(x)
    return view


def compare(
    ours: Callable[..., Tensor], reference: Callable[..., Tensor], inputs: Mapping[str, Tensor], seed: int = 1
) -> None:
    """Values and, where inputs ask for them, gradients by name: against float64, beside plain torch."""
    outcomes = []
    for function, wide in ((ours, False), (reference, False), (reference, True)):
        given = {
            name: x.detach().double() if wide and x.is_floating_point() else x.detach()
            for name, x in inputs.items()
        }
        wanted = [name for name, x in inputs.items() if x.requires_grad]
        for name in wanted:
            given[name].requires_grad_()
        y = function(**given)
        if wanted:
            y.backward(
                random(*y.shape, dtype=inputs[wanted[0]].dtype, device=y.device, seed=seed).to(y.dtype)
            )
        outcomes.append({"output": y.detach(), **{name: given[name].grad for name in wanted}})
    mine, torchs, exact = outcomes
    for name, value in mine.items():
        assert_as_good_as_torch(value, torchs[name], exact[name], name)
