"""Rotary embedding of LLaMA-7B's queries and keys in training."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.cases.ops.case import Case, Work
from owl_fast import ops

HEADS, HEAD_DIM = 32, 128


def make(rows: int, backward: bool, device: torch.device) -> Work:
    qkv = torch.randn(rows, 3, HEADS, HEAD_DIM, dtype=torch.bfloat16, device=device)
    query, key = (qkv[:, part].requires_grad_(backward) for part in range(2))
    given = [torch.randn_like(x) for x in (query, key)]
    positions = torch.arange(rows, device=device)
    cos, sin = ops.rotary_tables(positions, HEAD_DIM, 10000.0, torch.bfloat16)

    def run() -> object:
        out = ops.rotary(query, key, cos, sin)
        return torch.autograd.grad(out, (query, key), given) if backward else out

    return Work(run=run, nbytes=(8 if backward else 4) * query.numel() * 2)


CASES = (
    Case("rotary", "N2048-H32-D128-bf16", partial(make, 2048, False)),
    Case("rotary forward + backward", "N2048-H32-D128-bf16", partial(make, 2048, True)),
)
