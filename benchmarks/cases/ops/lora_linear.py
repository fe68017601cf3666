"""Linear layers of LLaMA-7B and of the vision tower, with and without updates of rank 8 on q and v."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases.ops.case import Case, Work
from owl_fast import ops
from owl_fast.kernels.lora_linear import lora_linear_reference
from owl_fast.kernels.weights import Int4Weight, Int8Weight, Weight, dequantize

RANK, SCALE, GROUP = 8, 4.0, 128
BF16 = torch.bfloat16


class Layer(NamedTuple):
    """parts: output rows with an update. activation: what follows. bias: whether it has one."""

    outputs: int
    inner: int
    parts: tuple[tuple[int, int], ...] = ()
    activation: ops.Activation | None = None
    bias: bool = False


QKV = Layer(12288, 4096, parts=((0, 4096), (8192, 12288)))
LAYERS = {
    "qkv": QKV,
    "gate_up": Layer(22016, 4096, activation="swiglu"),
    "down": Layer(4096, 11008),
    "head": Layer(32000, 4096),
    "vit_qkv": Layer(3072, 1024, bias=True),
    "vit_fc1": Layer(4096, 1024, activation="quick_gelu", bias=True),
    "vit_fc2": Layer(1024, 4096, bias=True),
}


def weight_of(form: str, outputs: int, inner: int, device: torch.device) -> Weight:
    if form == "bf16":
        return torch.randn(outputs, inner, dtype=BF16, device=device)
    if form == "int8":
        values = torch.randint(-127, 128, (outputs, inner), dtype=torch.int8, device=device)
        return Int8Weight(values, torch.rand(outputs, device=device))
    packed = torch.randint(0, 256, (outputs, inner // 2), dtype=torch.uint8, device=device)
    scale = torch.rand(outputs, inner // GROUP, device=device).half()
    return Int4Weight(packed, scale, inner, GROUP)


def nbytes(*tensors: Tensor | None) -> int:
    return sum(t.nbytes for t in tensors if t is not None)


def make(name: str, rows: int, form: str, trained: str, device: torch.device) -> Work:
    """trained: "" for the forward pass alone, "updates" (and x) or "weight" (and x) with gradients."""
    layer = LAYERS[name]
    weight = weight_of(form, layer.outputs, layer.inner, device)
    x = torch.randn(rows, layer.inner, dtype=BF16, device=device, requires_grad=bool(trained))
    bias = torch.randn(layer.outputs, dtype=BF16, device=device) if layer.bias else None
    updates = [
        ops.LoraUpdate(
            start,
            end,
            torch.randn(RANK, layer.inner, device=device, requires_grad=bool(trained)),
            torch.randn(end - start, RANK, device=device, requires_grad=bool(trained)),
            SCALE,
            0.05 if trained else 0.0,
        )
        for start, end in layer.parts
    ]
    leaves = [x, *(t for update in updates for t in (update.a, update.b))]
    if trained == "weight" and isinstance(weight, Tensor):
        leaves.append(weight.requires_grad_())
    width = layer.outputs // 2 if layer.activation == "swiglu" else layer.outputs
    dy = torch.randn(rows, width, dtype=BF16, device=device) if trained else None

    def with_gradients(y: Tensor) -> object:
        return y if dy is None else torch.autograd.grad(y, leaves, dy)

    def composed() -> object:
        used = weight if isinstance(weight, Tensor) else dequantize(weight, BF16)
        y = lora_linear_reference(x, used, bias, updates)
        if layer.activation is not None:
            y = F.silu(y[:, :width]) * y[:, width:] if layer.activation == "swiglu" else ops.quick_gelu(y)
        return with_gradients(y)

    products = 1 + bool(trained) + (trained == "weight")
    values = (weight,) if isinstance(weight, Tensor) else weight[:2]
    given = nbytes(x, *values, *leaves[1:])
    peer = "F.linear" if form == "bf16" else "dequantize + F.linear"
    return Work(
        run=lambda: with_gradients(ops.lora_linear(x, weight, bias, updates, activation=layer.activation)),
        nbytes=products * (given + rows * width * BF16.itemsize),
        flops=2 * rows * layer.inner * layer.outputs * products,
        peers={peer: composed},
    )


def case(name: str, rows: int, form: str, trained: str = "") -> Case:
    layer = LAYERS[name]
    shape = f"{name}-M{rows}-N{layer.outputs}-K{layer.inner}-{form}"
    op = f"lora_linear forward + backward of x and {trained}" if trained else "lora_linear"
    return Case(op, shape, partial(make, name, rows, form, trained))


LLAMA = ("qkv", "gate_up", "down")
CASES = (
    *(case(name, rows, form) for name in LLAMA for rows in (165, 2048) for form in ("bf16", "int4")),
    *(case("qkv", rows, "int8") for rows in (165, 2048)),
    *(case("head", 165, form) for form in ("bf16", "int4")),
    *(case(name, 257, "bf16") for name in ("vit_qkv", "vit_fc1", "vit_fc2")),
    *(case(name, 2048, form, "updates") for name in LLAMA for form in ("bf16", "int4")),
    *(case(name, 2056, "bf16", "weight") for name in ("vit_qkv", "vit_fc1")),
)
