"""The linear layers of a LLaMA-7B decoding 1, 8, 32 or 64 sequences, with what is fused into each."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases.ops.case import Case, Work
from benchmarks.timing import Run
from owl_fast import ops
from owl_fast.kernels.linear_many_rows import linear_many_rows
from owl_fast.kernels.weights import Int4Weight, Int8Weight, StackedLora, Weight

EPS = 1e-6
RANK, GROUP = 8, 128
LAYERS = {  # outputs, inputs, and what surrounds them
    "qkv": (12288, 4096, ("norm",)),
    "o": (4096, 4096, ("residual",)),
    "gate_up": (22016, 4096, ("norm", "swiglu")),
    "down": (4096, 11008, ("residual",)),
    "head": (32000, 4096, ("norm",)),
}


def make_weight(outputs: int, inputs: int, kind: str, device: torch.device) -> Weight:
    if kind == "bf16":
        return torch.randn(outputs, inputs, dtype=torch.bfloat16, device=device).mul_(0.02)
    if kind == "int8":
        q = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8, device=device)
        return Int8Weight(q, torch.rand(outputs, device=device) * 1e-3)
    nibbles = torch.randint(0, 256, (outputs, inputs // 2), dtype=torch.uint8, device=device)
    scale = (torch.rand(outputs, inputs // GROUP, device=device) * 0.01).half()
    return Int4Weight(nibbles, scale, inputs, GROUP)


def make(layer: str, kind: str, rows: int, lora: bool, device: torch.device) -> Work:
    outputs, inputs, around = LAYERS[layer]

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.bfloat16, device=device)

    x, weight = random(rows, inputs), make_weight(outputs, inputs, kind, device)
    adapter = None
    if lora:
        scale = torch.full((1, RANK), 4.0, device=device)
        adapter = StackedLora(random(1, RANK, inputs), random(1, outputs, RANK), scale)
    norm = (random(inputs), EPS) if "norm" in around else None
    activation: ops.Activation | None = "swiglu" if "swiglu" in around else None
    residual = random(rows, outputs) if "residual" in around else None

    def run() -> Tensor:
        return ops.lora_linear(
            x, weight, None, adapter or (), norm=norm, activation=activation, residual=residual
        )

    def unfused() -> Tensor:
        with ops.kernels(False):
            return run()

    def in_large_tiles() -> Tensor:
        normed = x if norm is None else ops.rms_norm(x, *norm)
        return linear_many_rows(normed, weight, None, adapter, activation=activation, residual=residual)

    peers: dict[str, Run] = {"unfused torch": unfused}
    if rows > 16:
        peers["rms_norm, linear_many_rows" if norm else "linear_many_rows"] = in_large_tiles
    if isinstance(weight, Tensor):
        peers["torch linear alone"] = partial(F.linear, x, weight)
    stored = [weight] if isinstance(weight, Tensor) else [weight.q, weight.scale]
    read = [*stored, x, *((adapter.a, adapter.b) if adapter is not None else ())]
    y_bytes = rows * (outputs // 2 if activation else outputs) * x.element_size()
    return Work(
        run=run,
        nbytes=sum(tensor.nbytes for tensor in read) + y_bytes,
        flops=2 * rows * outputs * inputs,
        peers=peers,
    )


def cases() -> tuple[Case, ...]:
    """Every layer in every format, and the adapter that recipes train: on the fused q, k, v."""
    return tuple(
        Case(
            "linear_few_rows",
            f"{layer}-M{rows}-N{LAYERS[layer][0]}-K{LAYERS[layer][1]}-{kind}" + ("-r8" if lora else ""),
            partial(make, layer, kind, rows, lora),
        )
        for layer in LAYERS
        for kind in ("bf16", "int8", "int4")
        for rows in (1, 8, 32, 64)
        for lora in ((False, True) if layer == "qkv" else (False,))
    )


CASES = cases()
