"""Weights in every format and updates, for the tests of linear layers."""

from __future__ import annotations

import torch
from torch import Tensor

from owl_fast.kernels.weights import Int4Weight, Int8Weight, StackedLora, Weight
from tests.kernels.tensors import random

FORMATS = ("dense", "int8", "int4-G16", "int4-G48", "int4-G128")


def weight_of(form: str, outputs: int, inner: int, dtype: torch.dtype, device: torch.device) -> Weight:
    """(outputs, inner) with entries of about 1; the dense one is a view between NaN."""
    generator = torch.Generator().manual_seed(outputs + inner)

    def integers(low: int, high: int, width: int, kind: torch.dtype) -> Tensor:
        return torch.randint(low, high, (outputs, width), generator=generator).to(device, kind)

    if form == "dense":
        wider = torch.full((outputs, inner + 7), torch.nan, dtype=dtype, device=device)
        wider[:, 3:-4] = random(outputs, inner, dtype=dtype, device=device, seed=5)
        return wider[:, 3:-4]
    if form == "int8":
        scale = random(outputs, device=device, seed=6).abs() / 64
        return Int8Weight(integers(-128, 128, inner, torch.int8), scale)
    group = int(form.partition("-G")[2])
    scale = random(outputs, -(-inner // group), device=device, seed=7) / 4
    return Int4Weight(integers(0, 256, -(-inner // 2), torch.uint8), scale.half(), inner, group)


def lora_of(
    adapters: int, rank: int, outputs: int, inner: int, rows: int, dtype: torch.dtype, device: torch.device
) -> StackedLora:
    """Updates as large as the layer itself; with several adapters, rows of each and of none by turns."""
    a = random(adapters, rank, inner, dtype=dtype, device=device, seed=8)
    b = random(adapters, outputs, rank, dtype=dtype, device=device, seed=9)
    scale = random(adapters, rank, device=device, seed=10) / rank**0.5
    index = None
    if adapters > 1:
        index = (torch.arange(rows) % (adapters + 1) - 1).to(device, torch.int32)
    return StackedLora(a, b, scale, index)
