"""Linear layers with dense weights on a CPU: LLaMA-7B's, decoding and a prompt, and the vision tower's.

Each run takes the next of several copies of the weight, more than a cache holds: so do a model's layers.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.cases.ops.case import Case, Work
from benchmarks.cases.ops.quantized_linear import COPIES_BYTES, in_turns
from owl_fast import ops

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
LANGUAGE = ((4096, 4096), (12288, 4096), (4096, 11008))
VISION = ((1024, 1024), (3072, 1024), (4096, 1024), (1024, 4096))


def make(outputs: int, inputs: int, dtype: torch.dtype, rows: int, device: torch.device) -> Work:
    weight = torch.randn(outputs, inputs, dtype=dtype, device=device)
    x = torch.randn(rows, inputs, dtype=dtype, device=device)
    copies = 1 + COPIES_BYTES // weight.nbytes
    return Work(
        run=in_turns(lambda: partial(ops.lora_linear, weight=weight.clone()), copies, x),
        nbytes=weight.nbytes + x.nbytes + rows * outputs * x.element_size(),
        flops=2 * rows * outputs * inputs,
        peers={"torch linear": in_turns(lambda: partial(F.linear, weight=weight.clone()), copies, x)},
    )


CASES = tuple(
    Case("dense_linear", f"M{rows}-N{outputs}-K{inputs}-{name}", partial(make, outputs, inputs, dtype, rows))
    for name, dtype in DTYPES.items()
    for rows, shapes in ((1, LANGUAGE), (128, LANGUAGE), (257, VISION))
    for outputs, inputs in shapes
)
