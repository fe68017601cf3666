"""Layer norm over the last axis: y = (x - mean) / sqrt(var + eps) * weight + bias.

Computed in float32 and cast back to x's dtype, as the original vision tower and abstractor do (their
norms run in float32 whatever the model's dtype).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def layer_norm_reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """x (..., D), weight (D,), bias (D,) -> (..., D) in x's dtype."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.layer_norm(x.to(wide), weight.shape, weight.to(wide), bias.to(wide), eps).to(x.dtype)
