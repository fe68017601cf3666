"""What kernels share that walk over rows: tensors seen as rows, and what they refuse."""

from __future__ import annotations

import torch
from torch import Tensor

from owl_fast.kernels.launch import GPU_DTYPES, check


def as_rows(x: Tensor) -> Tensor:
    """(..., H) -> (N, H) with neighbouring columns side by side; a view wherever that is possible."""
    return (x if x.stride(-1) == 1 else x.contiguous()).reshape(-1, x.shape[-1])


def check_rows(x: Tensor) -> None:
    check(x.dim() > 0 and x.dtype in GPU_DTYPES, x, "fp32, bf16 or fp16 of one dimension or more")


def check_vector(vector: Tensor, width: int, device: torch.device) -> None:
    """A norm's weight or a bias: one number for each column."""
    fits = vector.shape == (width,) and vector.dtype in GPU_DTYPES and vector.device == device
    check(fits and vector.is_contiguous(), vector, f"contiguous fp32, bf16 or fp16 ({width},) on {device}")
