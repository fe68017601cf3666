"""The one rule for floating-point results of kernels.

The error against float64 may be 1.5 times the largest error of plain torch in the same dtype, plus two
units in the last place of the true value.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ulp(truth: Tensor, dtype: torch.dtype) -> Tensor:
    """Distance between neighbouring values of `dtype` at each value of `truth` (float64)."""
    _, exponent = torch.frexp(truth.abs().clamp_min(torch.finfo(dtype).tiny))
    return torch.finfo(dtype).eps * torch.exp2(exponent.double() - 1)


def assert_close_to_truth(ours: Tensor, plain: Tensor, truth: Tensor) -> None:
    """`plain`: plain torch in the dtype of `ours`; `truth`: the same formula and inputs in float64."""
    assert ours.dtype == plain.dtype
    assert truth.dtype == torch.float64
    assert ours.shape == plain.shape == truth.shape
    if ours.numel() == 0:
        return
    plain_error = (plain.double() - truth).abs().max()
    error = (ours.double() - truth).abs()
    excess = error - (1.5 * plain_error + 2 * ulp(truth, ours.dtype))
    worst = int(excess.argmax())
    # Written so that a NaN fails too.
    assert bool((excess <= 0).all()), (
        f"element {worst}: {ours.flatten()[worst]:.9g} for {truth.flatten()[worst]:.9g}; "
        f"error {error.flatten()[worst]:.3g}, plain torch's largest {plain_error:.3g}"
    )
