"""Token vectors of LLaMA-7B."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.cases.ops.case import Case, Work
from owl_fast import ops

VOCABULARY, WIDTH = 32000, 4096


def make(rows: int, device: torch.device) -> Work:
    table = torch.randn(VOCABULARY, WIDTH, dtype=torch.bfloat16, device=device)
    ids = torch.randint(VOCABULARY, (rows,), device=device)
    return Work(
        run=lambda: ops.embedding(ids, table),
        nbytes=2 * rows * WIDTH * table.itemsize,
        peers={"torch embedding": lambda: F.embedding(ids, table)},
    )


CASES = tuple(Case("embedding", f"N{rows}-C4096-bf16", partial(make, rows)) for rows in (1, 64, 2048))
