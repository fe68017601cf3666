"""The three attention references against a direct float64 evaluation, on ragged shapes."""

from __future__ import annotations

import math
from itertools import accumulate, pairwise

import pytest
import torch
from torch import Tensor

from owl_fast.kernels.cross_attention import cross_attention_reference
from owl_fast.kernels.dense_attention import dense_attention_reference
from owl_fast.kernels.kv_append import kv_append_reference
from owl_fast.kernels.paged_attention import paged_attention_reference
from owl_fast.kernels.varlen_attention import varlen_attention_reference

FP32_ERROR = 2e-6  # of unit-variance inputs; a wrong mask or scale is off by more than 1e-2


def direct_attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    """query (n, H, D), key and value (m, K, D), visible (n, m) bool -> (n, H, D), all in float64."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.double().repeat_interleave(groups, 1) for x in (key, value))
    scores = torch.einsum("nhd,mhd->hnm", query.double(), key) / math.sqrt(query.shape[-1])
    weights = scores.masked_fill(~visible, -math.inf).softmax(-1)
    return torch.einsum("hnm,mhd->nhd", weights, value)


def causal(rows: int, keys: int) -> Tensor:
    """Row i of the last `rows` of `keys` positions sees itself and everything before."""
    return torch.arange(keys) <= torch.arange(keys - rows, keys)[:, None]


@pytest.mark.parametrize(
    "lengths", [(1,), (5,), (1, 63, 2), (17, 1, 64)], ids=lambda x: "L" + "-".join(map(str, x))
)
@pytest.mark.parametrize("heads", [(1, 1), (4, 4), (6, 2)], ids=["H1K1", "H4K4", "H6K2"])
def test_varlen_rows_see_their_own_past(lengths: tuple[int, ...], heads: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    total, bounds = sum(lengths), (0, *accumulate(lengths))
    query, key, value = (
        torch.randn(total, h, 16, generator=generator) for h in (heads[0], heads[1], heads[1])
    )
    out = varlen_attention_reference(query, key, value, bounds)
    for start, end in pairwise(bounds):
        part = slice(start, end)
        exact = direct_attention(query[part], key[part], value[part], causal(end - start, end - start))
        assert (out[part] - exact).abs().max() < FP32_ERROR


@pytest.mark.parametrize(
    "chunks", [(9,), (8, 1), (1, 1, 7), (3, 6)], ids=lambda x: "C" + "-".join(map(str, x))
)
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)], ids=["H4K4", "H6K2"])
def test_paged_chunks_equal_the_whole(chunks: tuple[int, ...], heads: tuple[int, int]) -> None:
    """Chunk by chunk through a scattered cache, whose unused slots are NaN, next to a second sequence."""
    generator = torch.Generator().manual_seed(1)
    total, block_size = sum(chunks), 4
    query, key, value = (
        torch.randn(total, h, 8, generator=generator) for h in (heads[0], heads[1], heads[1])
    )
    exact = direct_attention(query, key, value, causal(total, total))
    caches = [torch.full((7, block_size, heads[1], 8), math.nan) for _ in range(2)]
    table = torch.tensor([[5, 1, 3], [2, 0, 0]], dtype=torch.int32)
    neighbour = torch.randn(1, heads[0], 8, generator=generator)
    neighbour_kv = torch.randn(1, heads[1], 8, generator=generator)
    start = 0
    for chunk in chunks:
        end = start + chunk
        places = torch.arange(start, end)
        slots = torch.cat(
            (table[0, places // block_size] * block_size + places % block_size, torch.tensor([8]))
        )
        kv_append_reference(
            torch.cat((key[start:end], neighbour_kv)),
            torch.cat((value[start:end], neighbour_kv)),
            *caches,
            slots.long(),
        )
        out = paged_attention_reference(
            torch.cat((query[start:end], neighbour)), *caches, table, (0, chunk, chunk + 1), (end, 1)
        )
        assert (out[:chunk] - exact[start:end]).abs().max() < FP32_ERROR
        groups = heads[0] // heads[1]
        assert torch.allclose(out[chunk], neighbour_kv[0].repeat_interleave(groups, 0))  # one key: its value
        start = end


@pytest.mark.parametrize("extra", [False, True], ids=["plain", "extra"])
@pytest.mark.parametrize(
    ("queries", "rows"), [(1, 1), (5, 17), (64, 257)], ids=["Q1-P1", "Q5-P17", "Q64-P257"]
)
def test_cross_attention_sees_queries_then_image(queries: int, rows: int, extra: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    query = torch.randn(2, queries, 3, 8, generator=generator)
    query_kv = torch.randn(2, queries, 2, 3, 8, generator=generator)
    image_kv = torch.randn(2, rows, 2, 3, 8, generator=generator)
    extra_kv = torch.randn(2, 3, 8, generator=generator) if extra else None
    out = cross_attention_reference(query, query_kv, image_kv, extra_key_value=extra_kv)
    both = torch.cat((query_kv, image_kv), 1)
    if extra_kv is not None:
        both = torch.cat((both, extra_kv.expand(2, 1, -1, -1, -1)), 1)
    visible = torch.ones(queries, both.shape[1], dtype=torch.bool)
    for n in range(2):
        exact = direct_attention(query[n], both[n, :, 0], both[n, :, 1], visible)
        assert (out[n] - exact).abs().max() < FP32_ERROR


def test_cross_attention_gradients_reach_every_input() -> None:
    generator = torch.Generator().manual_seed(4)
    inputs = [
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 3, 2, 4), (2, 3, 2, 2, 4), (2, 5, 2, 2, 4), (2, 2, 4))
    ]
    assert torch.autograd.gradcheck(
        lambda q, qkv, ikv, extra: cross_attention_reference(q, qkv, ikv, extra_key_value=extra), inputs
    )


def test_cross_attention_dropout_is_random_and_unbiased() -> None:
    torch.manual_seed(0)
    query, query_kv, image_kv = torch.zeros(1, 1, 1, 4), torch.ones(1, 1, 2, 1, 4), torch.ones(1, 99, 2, 1, 4)
    draws = torch.stack([cross_attention_reference(query, query_kv, image_kv, 0.5) for _ in range(200)])
    assert draws.std() > 0.01
    assert abs(draws.mean().item() - 1.0) < 0.02


def test_dense_attention_has_no_mask() -> None:
    generator = torch.Generator().manual_seed(3)
    query, key, value = (torch.randn(2, 17, 4, 12, generator=generator) for _ in range(3))
    out = dense_attention_reference(query, key, value)
    for n in range(2):
        exact = direct_attention(query[n], key[n], value[n], torch.ones(17, 17, dtype=torch.bool))
        assert (out[n] - exact).abs().max() < FP32_ERROR
