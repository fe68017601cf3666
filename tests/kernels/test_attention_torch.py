"""Attention with gradients by torch's CPU kernels, bit for bit as scaled_dot_product_attention gives them."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from torch import Tensor

from owl_fast.kernels.attention_torch import attention_torch, packed_attention_torch
from owl_fast.kernels.dense_attention import dense_attention_reference
from owl_fast.kernels.varlen_attention import varlen_attention_reference
from tests.kernels.tensors import random

CPU = torch.device("cpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def same_bits(ours: Tensor, theirs: Tensor, leaves: list[Tensor]) -> None:
    given = random(*ours.shape, dtype=ours.dtype, device=CPU, seed=5)
    assert torch.equal(ours, theirs)
    for mine, his in zip(*(torch.autograd.grad(y, leaves, given) for y in (ours, theirs)), strict=True):
        assert torch.equal(mine, his)


@dtypes
def test_dense(dtype: torch.dtype) -> None:
    fused = random(2, 9, 3, 3, 16, dtype=dtype, device=CPU).requires_grad_()  # [head][q | k | v][D]
    q, k, v = fused.unbind(3)
    same_bits(attention_torch(q, k, v, causal=False), dense_attention_reference(q, k, v), [fused])


@dtypes
@pytest.mark.parametrize("lengths", [(1,), (5, 1, 40)], ids=str)
@pytest.mark.parametrize("kv_heads", [4, 2], ids=["MHA", "GQA"])
def test_packed(lengths: tuple[int, ...], kv_heads: int, dtype: torch.dtype) -> None:
    bounds = (0, *accumulate(lengths))
    leaves = [
        random(bounds[-1], heads, 16, dtype=dtype, device=CPU, seed=i).requires_grad_()
        for i, heads in enumerate((4, kv_heads, kv_heads))
    ]
    ours, theirs = packed_attention_torch(*leaves, bounds), varlen_attention_reference(*leaves, bounds)
    if kv_heads == 4:
        same_bits(ours, theirs, leaves)
    else:  # torch gives grouped queries to another kernel
        torch.testing.assert_close(ours, theirs)


def test_nothing_to_attend() -> None:
    empty = torch.empty(0, 2, 16, requires_grad=True)
    assert packed_attention_torch(empty, empty, empty, (0,)).shape == (0, 2, 16)
