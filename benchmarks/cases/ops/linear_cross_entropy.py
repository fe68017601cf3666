"""Head and loss of LLaMA-7B: 4096 labelled rows, width 4096, 32000 words."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases.ops.case import Case, Work
from owl_fast import ops
from owl_fast.kernels.weights import Int4Weight, Int8Weight, Weight, dequantize

WIDTH, VOCABULARY, GROUP = 4096, 32000, 128


def dense(trains: bool, device: torch.device) -> Tensor:
    weight = torch.randn(VOCABULARY, WIDTH, device=device) * WIDTH**-0.5
    return weight.bfloat16().requires_grad_(trains)


def int8(device: torch.device) -> Int8Weight:
    q = torch.randint(-127, 128, (VOCABULARY, WIDTH), device=device, dtype=torch.int8)
    return Int8Weight(q, torch.full((VOCABULARY,), WIDTH**-0.5 / 73, device=device))


def int4(device: torch.device) -> Int4Weight:
    q = torch.randint(0, 256, (VOCABULARY, WIDTH // 2), device=device, dtype=torch.uint8)
    scale = torch.full((VOCABULARY, WIDTH // GROUP), WIDTH**-0.5 / 4.6, device=device, dtype=torch.float16)
    return Int4Weight(q, scale, WIDTH, GROUP)


def make(rows: int, head: Callable[[torch.device], Weight], backward: bool, device: torch.device) -> Work:
    """The peer with a quantized head writes it out first, all of it."""
    weight = head(device)
    hidden = torch.randn(rows, WIDTH, dtype=torch.bfloat16, device=device, requires_grad=backward)
    targets = torch.randint(VOCABULARY, (rows,), device=device)
    leaves = [x for x in (hidden, weight) if isinstance(x, Tensor) and x.requires_grad]

    def with_gradient(loss: Tensor) -> object:
        return torch.autograd.grad(loss, leaves) if backward else loss

    def plain() -> object:
        logits = F.linear(hidden, dequantize(weight, torch.bfloat16))
        return with_gradient(F.cross_entropy(logits.float(), targets, reduction="sum"))

    return Work(
        run=lambda: with_gradient(ops.linear_cross_entropy(hidden, weight, targets)),
        nbytes=(2 if backward else 1) * 2 * (VOCABULARY + rows) * WIDTH,
        flops=2 * rows * WIDTH * VOCABULARY * (1 + len(leaves)),
        peers={"torch linear, cross_entropy": plain},
    )


CASES = (
    Case("linear_cross_entropy", "M4096-bf16", partial(make, 4096, partial(dense, False), False)),
    Case("linear_cross_entropy + dH", "M4096-bf16", partial(make, 4096, partial(dense, False), True)),
    Case("linear_cross_entropy + dH", "M512-bf16", partial(make, 512, partial(dense, False), True)),
    Case("linear_cross_entropy + dH, dW", "M4096-bf16", partial(make, 4096, partial(dense, True), True)),
    Case("linear_cross_entropy + dH", "M4096-int8", partial(make, 4096, int8, True)),
    Case("linear_cross_entropy + dH", "M4096-int4", partial(make, 4096, int4, True)),
)
