"""What a benchmark of an operation gives: what runs, beside what, and how much it has to do at least."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from benchmarks.timing import Run


@dataclass(frozen=True)
class Work:
    """run: the operation through owl_fast.ops. peers: the same by other means, on the same inputs.

    nbytes: what has to be read and written at least. flops: multiplications and additions, int8 ones where
    a CPU may round to them.
    """

    run: Run
    nbytes: int
    flops: int = 0
    peers: Mapping[str, Run] = field(default_factory=dict)
    int8: bool = False


@dataclass(frozen=True)
class Case:
    """An operation at one shape. make: inputs on a device ("meta" for what is only compiled) -> Work.

    kernel_only: it has no path in plain torch.
    """

    op: str
    shape: str
    make: Callable[[torch.device], Work]
    kernel_only: bool = False
