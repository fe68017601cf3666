"""Inputs for the tests of kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from owl_fast.kernels.weights import Int4Weight, Int8Weight
from tests.tolerances import assert_as_good_as_torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CPU_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}  # of libowl_cpu and of training on a CPU

# Where what a kernel writes is compared bit by bit, or read again: the interpreter cuts bf16 off, GPUs round.
ROUNDED = {name: dtype for name, dtype in DTYPES.items() if name != "bf16" or torch.cuda.is_available()}


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


def quantized(kind: str, rows: int, width: int, device: torch.device) -> Int8Weight | Int4Weight:
    """A weight of "int8", or of "int4-gG" for groups of G, of about unit variance."""
    generator = torch.Generator().manual_seed(rows * width)
    if kind == "int8":
        q = torch.randint(-127, 128, (rows, width), generator=generator).to(torch.int8)
        scale = (torch.rand(rows, generator=generator) + 0.5) / 73
        return Int8Weight(q.to(device), scale.to(device))
    group = int(kind.removeprefix("int4-g"))
    packed = torch.randint(0, 256, (rows, -(-width // 2)), generator=generator).to(torch.uint8)
    scale = (torch.rand(rows, -(-width // group), generator=generator) + 0.5) / 4.6
    return Int4Weight(packed.to(device), scale.half().to(device), width, group)


def compare(
    ours: Callable[..., Tensor], reference: Callable[..., Tensor], inputs: Mapping[str, Tensor], seed: int = 1
) -> None:
    """Values and, where inputs ask for them, gradients by name: against float64, beside plain torch."""
    outcomes = []
    # On processors with AMX torch 2.13's products in bf16 read what stands beside a view, and 0 times NaN is
    # NaN: it gets tensors with nothing between their rows.
    views: tuple[tuple[Callable[..., Tensor], Callable[[Tensor], Tensor]], ...] = (
        (ours, torch.Tensor.detach),
        (reference, lambda x: x.detach().clone(memory_format=torch.contiguous_format)),
        (reference, lambda x: x.detach().double() if x.is_floating_point() else x.detach()),
    )
    for function, view in views:
        given = {name: view(x) for name, x in inputs.items()}
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
