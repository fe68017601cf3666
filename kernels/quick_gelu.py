"""QuickGELU, the vision tower's activation: y = x * sigmoid(1.702 x)."""

from __future__ import annotations

import torch
from torch import Tensor


def quick_gelu_reference(x: Tensor) -> Tensor:
    """x of any shape -> same shape."""
    return x * torch.sigmoid(1.702 * x)
