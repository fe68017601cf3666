"""On a GPU every operation gives the same bits a thousand times, forward and backward, at the 7B shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.cases.ops import CASES
from benchmarks.cases.ops.case import Case

REPEATS = 1000


def tensors(result: Any) -> list[Tensor]:
    """What a case gives: a tensor, several, or none."""
    if isinstance(result, Tensor):
        return [result]
    return [t for part in result for t in tensors(part)] if isinstance(result, (tuple, list)) else []


# A draw moves its slot on, and a seed of dropout is drawn anew: both are meant to differ.
@pytest.mark.gpu
@pytest.mark.parametrize(
    "case",
    [case for case in CASES if not case.op.startswith("sample") and "dropout" not in case.op],
    ids=lambda case: f"{case.op} {case.shape}".replace(" ", "_"),
)
def test_the_same_bits_every_time(case: Case) -> None:
    torch.manual_seed(0)
    work = case.make(torch.device("cuda"))
    first = [t.clone() for t in tensors(work.run())]
    assert first
    differing = torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(REPEATS):
        for ours, before in zip(tensors(work.run()), first, strict=True):
            differing += (ours.view(torch.uint8) != before.view(torch.uint8)).any()
    assert differing.item() == 0
