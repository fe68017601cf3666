"""Attention with gradients on a CPU, by name against float64, and what it keeps for backward."""

from __future__ import annotations

from functools import partial
from itertools import accumulate

import pytest
import torch
from torch import Tensor

from owl_fast.kernels import attention_torch as module
from owl_fast.kernels.attention_torch import attention_torch
from owl_fast.kernels.dense_attention import dense_attention_reference
from owl_fast.kernels.varlen_attention import varlen_attention_reference
from tests.kernels.tensors import CPU_DTYPES, compare, random, strided

CPU = torch.device("cpu")
dtypes = pytest.mark.parametrize("dtype", CPU_DTYPES.values(), ids=CPU_DTYPES)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven queries at a time."""
    monkeypatch.setattr(module, "BLOCK", 1)
    monkeypatch.setattr(module, "LEAST", 7)


def packed(query: Tensor, key: Tensor, value: Tensor, bounds: tuple[int, ...]) -> Tensor:
    return attention_torch(query, key, value, bounds, partial(varlen_attention_reference, bounds=bounds))


def inputs_of(rows: int, heads: tuple[int, int], dtype: torch.dtype) -> dict[str, Tensor]:
    given = {"query": heads[0], "key": heads[1], "value": heads[1]}
    return {
        name: strided(random(rows, count, 16, dtype=dtype, device=CPU, seed=i)).requires_grad_()
        for i, (name, count) in enumerate(given.items())
    }


@dtypes
@pytest.mark.parametrize("lengths", [(1,), (5, 1, 40), (7, 14)], ids=str)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=["MHA", "GQA"])
@pytest.mark.usefixtures("poisoned", "small")
def test_packed(lengths: tuple[int, ...], heads: tuple[int, int], dtype: torch.dtype) -> None:
    bounds = (0, *accumulate(lengths))
    reference = partial(varlen_attention_reference, bounds=bounds)
    compare(partial(packed, bounds=bounds), reference, inputs_of(bounds[-1], heads, dtype))


@dtypes
@pytest.mark.usefixtures("poisoned", "small")
def test_unmasked(dtype: torch.dtype) -> None:
    """The vision tower's views, whose gradient comes back as one tensor."""
    fused = random(2, 9, 3, 3, 16, dtype=dtype, device=CPU).requires_grad_()  # [head][q | k | v][D]
    compare(
        lambda fused: attention_torch(*fused.unbind(3), None, dense_attention_reference),
        lambda fused: dense_attention_reference(*fused.unbind(3)),
        {"fused": fused},
    )


def test_keeps_its_inputs_alone() -> None:
    given, kept = inputs_of(12, (2, 2), torch.float32), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        packed(**given, bounds=(0, 5, 12))
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for t in given.values()}


def test_nothing_to_attend() -> None:
    empty = torch.empty(0, 2, 16, requires_grad=True)
    packed(empty, empty, empty, (0,)).sum().backward()
    assert empty.grad is not None
