"""RMSNorm over the 4096 channels of LLaMA-7B."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.cases.ops.case import Case, Work
from owl_fast import ops

WIDTH, EPS = 4096, 1e-6


def make(rows: int, backward: bool, device: torch.device) -> Work:
    x = torch.randn(rows, WIDTH, dtype=torch.bfloat16, device=device, requires_grad=backward)
    weight = torch.randn(WIDTH, dtype=torch.bfloat16, device=device)
    dy = torch.randn(rows, WIDTH, dtype=torch.bfloat16, device=device)

    def with_gradient(y: torch.Tensor) -> object:
        return torch.autograd.grad(y, x, dy) if backward else y

    return Work(
        run=lambda: with_gradient(ops.rms_norm(x, weight, EPS)),
        nbytes=(5 if backward else 2) * x.nbytes,
        peers={"torch rms_norm": lambda: with_gradient(F.rms_norm(x, (WIDTH,), weight, EPS))},
    )


CASES = (
    Case("rms_norm", "N1-H4096-bf16", partial(make, 1, False)),
    Case("rms_norm", "N2048-H4096-bf16", partial(make, 2048, False)),
    Case("rms_norm forward + backward", "N2048-H4096-bf16", partial(make, 2048, True)),
)
