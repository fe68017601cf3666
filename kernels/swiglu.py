"""SwiGLU gate (arXiv 2002.05202): y = silu(gate) * up, gate and up side by side in one tensor."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def swiglu_reference(gate_up: Tensor) -> Tensor:
    """gate_up (..., 2F), gate first -> (..., F)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
