"""Every tolerance of the tests, in one place, with its reason."""

from __future__ import annotations

import torch
from torch import Tensor

# Agreement of a float32 implementation with the reference numbers (tests/golden/README.md).
ACTIVATION = 1e-4  # activations and logits, absolute
LOSS = 1e-5
GRADIENT = 1e-4  # relative to the largest entry
AFTER_STEPS = 2e-5  # parameters after three optimizer steps
SAME_RUN = 1e-5  # float32 log-probs of one sequence, alone or in a batch


def assert_as_good_as_torch(ours: Tensor, torchs: Tensor, exact: Tensor, name: str = "") -> None:
    """Error against float64 at most 1.5 x that of plain torch in the same dtype, plus 2 ulp; NaN fails."""
    assert (ours.shape, ours.dtype) == (exact.shape, torchs.dtype), name
    if exact.numel() == 0:
        return
    ulp = torch.finfo(ours.dtype).eps * exact.abs().max().item()
    ours_error, torchs_error = ((x.double() - exact).abs() for x in (ours, torchs))
    for reduce in (torch.max, torch.median):
        limit = 1.5 * reduce(torchs_error).item() + 2 * ulp
        assert reduce(ours_error).item() <= limit, f"{name} {reduce.__name__}: {reduce(ours_error)} > {limit}"
