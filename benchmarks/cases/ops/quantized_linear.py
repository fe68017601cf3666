"""Linear layers of LLaMA-7B with quantized weights on a CPU: one sequence decoding, eight, and a prompt.

Each run takes the next of several copies of the weight, more than a cache holds: so do a model's layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases.ops.case import Case, Work
from benchmarks.models import random_weight
from benchmarks.timing import Run
from owl_fast import ops
from owl_fast.kernels.weights import Int4Weight, Int8Weight, dequantize

KINDS = {"int4-g32": ("int4", 32), "int4-g128": ("int4", 128), "int8": ("int8", 0)}  # scheme and group
COPIES_BYTES = 200 << 20  # of all copies together; caches are smaller
SHAPES = ((4096, 4096), (11008, 4096), (4096, 11008), (32000, 4096))


def torchs_own(weight: Int8Weight | Int4Weight) -> tuple[str, Callable[[Tensor], Callable[[Tensor], Tensor]]]:
    """Its name, and copy of the packed weight -> (x -> y)."""
    if isinstance(weight, Int8Weight):
        scale = weight.scale.bfloat16()
        return "torch int8pack", lambda q: lambda x: torch._weight_int8pack_mm(x, q, scale)
    group = weight.group
    scales = torch.stack((weight.scale.T, torch.zeros_like(weight.scale.T)), -1).bfloat16().contiguous()
    return "torch int4pack", lambda q: lambda x: torch._weight_int4pack_mm_for_cpu(x, q, group, scales)


def torchs_packed(weight: Int8Weight | Int4Weight) -> Tensor:
    if isinstance(weight, Int8Weight):
        return weight.q
    values = torch.stack((weight.q & 15, weight.q >> 4), -1).flatten(1).int()
    return torch._convert_weight_to_int4pack_for_cpu(values, 1)


def in_turns(make: Callable[[], Callable[[Tensor], object]], copies: int, x: Tensor) -> Run:
    runs: Iterator[Callable[[Tensor], object]] = itertools.cycle([make() for _ in range(copies)])
    return lambda: next(runs)(x)


def make(outputs: int, inputs: int, kind: str, rows: int, device: torch.device) -> Work:
    weight = random_weight((outputs, inputs), *KINDS[kind], device)
    x = torch.randn(rows, inputs, dtype=torch.bfloat16, device=device)
    tiles = ops.tiled(weight)
    stored = weight.q.nbytes + weight.scale.nbytes if tiles is None else tiles.data.nbytes
    copies = 1 + COPIES_BYTES // stored

    def ours() -> Callable[[Tensor], object]:
        tiled = ops.tiled(weight) or weight
        return lambda x: ops.lora_linear(x, tiled)

    packed, (name, torchs) = torchs_packed(weight), torchs_own(weight)
    dense = dequantize(weight, torch.bfloat16)
    return Work(
        run=in_turns(ours, copies, x),
        nbytes=stored + x.nbytes + rows * outputs * x.element_size(),
        flops=2 * rows * outputs * inputs,
        int8=True,
        peers={
            name: in_turns(lambda: torchs(packed.clone()), copies, x),
            "torch bf16 linear": in_turns(
                lambda: partial(F.linear, weight=dense.clone()), 1 + COPIES_BYTES // dense.nbytes, x
            ),
        },
    )


CASES = tuple(
    Case(
        "quantized_linear",
        f"M{rows}-N{outputs}-K{inputs}-{kind}",
        partial(make, outputs, inputs, kind, rows),
    )
    for kind in KINDS
    for rows in (1, 8, 128)
    for outputs, inputs in SHAPES
)
