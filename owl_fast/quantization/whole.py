"""A model in memory, quantized or made dense again. Loading does it tensor by tensor: checkpoints/load.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from owl_fast import ops
from owl_fast.config import Quantization
from owl_fast.models.layers import PackedWeight
from owl_fast.models.owl import Owl
from owl_fast.quantization import int4, int8

Pack = Callable[[Tensor], ops.Int8Weight | ops.Int4Weight]


def packer(scheme: str, group: int, plain: bool = False) -> Pack:
    """What makes of a weight (N, K) its canonical tensors. plain: without a search for the scales."""
    if scheme == "int8":
        return int8.plain if plain else int8.pack
    pack = int4.plain if plain else int4.pack
    return lambda weight: pack(weight, group)


@torch.no_grad()
def quantize_(model: Owl, quantization: Quantization, plain: bool = False) -> None:
    """Weights of a dense model, each replaced by its quantized form as soon as that is there."""
    for linear, scheme in model.quantized_slots(quantization):
        assert isinstance(linear.operand, Tensor)
        linear.put(packer(scheme, quantization.group, plain)(linear.operand))
    model.config = replace(model.config, quantization=quantization)


def lay_out_(model: Owl) -> None:
    """Quantized weights as the kernels of this machine read them, one after the other; for inference alone:
    a gradient through such a layer makes a copy of its weight as files hold it."""
    for module in model.modules():
        if isinstance(module, PackedWeight):
            module.lay_out()


@torch.no_grad()
def dequantize_(model: Owl) -> None:
    """Quantized weights, each replaced by the dense one it stands for, in the model's dtype."""
    if model.config.quantization is not None:
        for linear, _ in model.quantized_slots(model.config.quantization):
            assert isinstance(linear.weight, PackedWeight)
            linear.put(ops.dequantize(linear.weight.canonical, model.dtype))
        model.config = replace(model.config, quantization=None)
