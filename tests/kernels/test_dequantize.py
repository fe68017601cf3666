"""Quantized weights written out by kernels, against weights.dequantize bit by bit."""

from __future__ import annotations

import pytest
import torch

from owl_fast.kernels.dequantize import check_quantized, dequantize_rows
from owl_fast.kernels.weights import Int4Weight, Int8Weight, dequantize
from tests.kernels.tensors import ROUNDED, quantized


@pytest.mark.parametrize("dtype", ROUNDED.values(), ids=ROUNDED)
@pytest.mark.parametrize("width", [1, 61, 128, 2050], ids=lambda width: f"K{width}")
@pytest.mark.parametrize("kind", ["int8", "int4-g48", "int4-g128"])
@pytest.mark.usefixtures("poisoned")
def test_rows_equal_the_reference(device: torch.device, kind: str, width: int, dtype: torch.dtype) -> None:
    weight = quantized(kind, 7, width, device)
    out = torch.full((3, width + 5), torch.nan, dtype=dtype, device=device)[:, :width]
    dequantize_rows(weight, 2, out)
    assert torch.equal(out, dequantize(weight, dtype)[2:5])


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    weight = quantized("int8", 7, 16, device)
    for out in (torch.empty(6, 16, device=device), torch.empty(2, 8, device=device)):
        with pytest.raises(ValueError, match=r"came; wanted at most 5 rows of 16 columns"):
            dequantize_rows(weight, 2, out)
    with pytest.raises(ValueError, match=r"came; wanted a contiguous tensor"):
        check_quantized(Int8Weight(weight.q.T, weight.scale))
    odd = Int4Weight(torch.zeros(2, 8, dtype=torch.uint8), torch.zeros(2, 2, dtype=torch.float16), 16, 9)
    with pytest.raises(ValueError, match=r"int4 groups of 9 came; wanted an even number"):
        check_quantized(odd)
