"""Layer norm: 1024 channels of ViT-L/14 (257 rows a picture), 2816 inside the abstractor."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases.ops.case import Case, Work
from owl_fast import ops

EPS = 1e-6


def make(rows: int, width: int, backward: bool, device: torch.device) -> Work:
    x = torch.randn(rows, width, dtype=torch.bfloat16, device=device, requires_grad=backward)
    weight, bias = (
        torch.randn(width, dtype=torch.bfloat16, device=device, requires_grad=backward) for _ in range(2)
    )
    dy = torch.randn(rows, width, dtype=torch.bfloat16, device=device)

    def with_gradient(y: Tensor) -> object:
        return torch.autograd.grad(y, (x, weight, bias), dy) if backward else y

    return Work(
        run=lambda: with_gradient(ops.layer_norm(x, weight, bias, EPS)),
        nbytes=(5 if backward else 2) * x.nbytes,
        peers={"torch layer_norm": lambda: with_gradient(F.layer_norm(x, (width,), weight, bias, EPS))},
    )


def make_plain(rows: int, width: int, device: torch.device) -> Work:
    x = torch.randn(rows, width, dtype=torch.bfloat16, device=device)
    return Work(
        run=lambda: ops.layer_norm(x, None, None, EPS),
        nbytes=2 * x.nbytes,
        peers={"torch layer_norm": lambda: F.layer_norm(x, (width,), None, None, EPS)},
    )


CASES = (
    Case("layer_norm", "N257-H1024-bf16", partial(make, 257, 1024, False)),
    Case("layer_norm", "N4112-H1024-bf16", partial(make, 4112, 1024, False)),
    Case("layer_norm", "N64-H2816-bf16", partial(make, 64, 2816, False)),
    Case("layer_norm without scale and shift", "N257-H1024-bf16", partial(make_plain, 257, 1024)),
    Case("layer_norm forward + backward", "N4112-H1024-bf16", partial(make, 4112, 1024, True)),
    Case("layer_norm forward + backward", "N1024-H2816-bf16", partial(make, 1024, 2816, True)),
)
