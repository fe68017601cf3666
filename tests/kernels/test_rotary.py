"""Rotary embedding: the reference, and by Triton queries and keys in one launch, against float64."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from owl_fast.kernels.launch import recording
from owl_fast.kernels.rotary import rotary_reference, rotary_tables, rotary_triton
from tests.kernels.pages import fused_qkv
from tests.kernels.tensors import DTYPES, compare, random, strided


@pytest.mark.parametrize("head_dim", [2, 16, 128])
def test_rotary_is_a_rotation_by_position(head_dim: int) -> None:
    positions = torch.tensor([0, 1, 5, 2047])
    x = torch.randn(4, 3, head_dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cos, sin = rotary_tables(positions, head_dim, 10000.0, torch.float64)
    out = rotary_reference(x, cos, sin)
    half = head_dim // 2
    frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float64) * 2 / head_dim)
    turn = torch.polar(torch.ones(4, 1, half, dtype=torch.float64), positions[:, None, None] * frequency)
    exact = torch.complex(x[..., :half], x[..., half:]) * turn
    assert (out - torch.cat((exact.real, exact.imag), -1)).abs().max() < 1e-3  # angles are float32 up to 2047
    assert torch.equal(out[0], x[0])  # position 0 does not turn


def both(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.cat((rotary_reference(query, cos, sin), rotary_reference(key, cos, sin)), 1)


def both_triton(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return torch.cat(rotary_triton(query, key, cos, sin), 1)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(
    ("rows", "heads", "kv_heads", "head_dim"),
    [(1, 1, 1, 2), (3, 5, 5, 16), (5, 6, 2, 24), (2, 17, 1, 128)],
    ids=lambda n: str(n),
)
@pytest.mark.usefixtures("poisoned")
def test_values_and_gradients(
    device: torch.device, rows: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    """Heads lie inside NaN, as views of wider rows do."""
    positions = torch.arange(rows, device=device) * 7
    cos, sin = rotary_tables(positions, head_dim, 10000.0, dtype)
    query, key = (
        strided(random(rows, h, head_dim, dtype=dtype, device=device, seed=h)).requires_grad_()
        for h in (heads, kv_heads)
    )
    compare(both_triton, both, {"query": query, "key": key, "cos": cos, "sin": sin})


def test_fused_rows_in_one_launch_each_way(device: torch.device) -> None:
    query, key, _ = fused_qkv(3, 4, 2, 8, dtype=torch.float32, device=device)
    leaves = [x.requires_grad_() for x in (query, key)]
    cos, sin = rotary_tables(torch.tensor([0, 1, 9], device=device), 8, 10000.0, torch.float32)
    with recording() as recorder:
        out = rotary_triton(*leaves, cos, sin)
        gradients = torch.autograd.grad(out, leaves, [x.detach() for x in out])
    assert [x.name for x in recorder.launches] == ["_rotary_kernel"] * 2
    for turned_back, x in zip(gradients, leaves, strict=True):  # a rotation's gradient is the rotation back
        torch.testing.assert_close(turned_back, x.detach(), atol=1e-6, rtol=0)


def test_refuses_what_does_not_fit(device: torch.device) -> None:
    query, key = random(2, 3, 8, device=device), random(2, 1, 8, device=device)
    cos, sin = rotary_tables(torch.tensor([0, 1], device=device), 8, 10000.0, torch.float32)
    for bad, words in (
        ((query.double(), key, cos, sin), "float64 (2, 3, 8)"),
        ((query[..., :7], key, cos, sin), "float32 (2, 3, 7)"),
        ((query.transpose(1, 2), key, cos, sin), "float32 (2, 8, 3)"),
        ((query, key[:1], cos, sin), "float32 (1, 1, 8)"),
        ((query, key.half(), cos, sin), "float32 (2, 4)"),
        ((query, key, cos[:, :3], sin), "float32 (2, 3)"),
        ((query, key, cos, sin[:1]), "float32 (2, 3, 8)"),
    ):
        with pytest.raises(ValueError, match=re.escape(words) + ".* came; wanted"):
            rotary_triton(*bad)
