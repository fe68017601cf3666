"""Autocast, as torch's own operations heed it: where it is on, inputs are cast to its dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype in which operations on x compute; None where autocast is off, or x's device has none."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def as_autocast(*tensors: Any) -> tuple[Any, ...]:
    """Tensors, or None, the first a tensor: in autocast's dtype where it is on."""
    dtype = autocast_dtype(tensors[0])
    return tensors if dtype is None else tuple(None if x is None else x.to(dtype) for x in tensors)
