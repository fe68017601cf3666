"""Head and loss in one in torch, dense and quantized, frozen and trained: against float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from owl_fast.kernels import linear_cross_entropy_torch as module
from owl_fast.kernels import linear_torch
from owl_fast.kernels.linear_cross_entropy import linear_cross_entropy_reference
from owl_fast.kernels.linear_cross_entropy_torch import linear_cross_entropy_torch
from tests.kernels.tensors import CPU_DTYPES, compare, quantized, random

CPU = torch.device("cpu")
dtypes = pytest.mark.parametrize("dtype", CPU_DTYPES.values(), ids=CPU_DTYPES)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five rows of logits at a time, two of them in float32, and a few words of a quantized head."""
    monkeypatch.setattr(module, "CHUNK_BYTES", 5 * 61 * 4)
    monkeypatch.setattr(module, "SOFTMAX_ROWS", 2)
    monkeypatch.setattr(linear_torch, "PIECE", 400)


def labels(rows: int, vocabulary: int) -> Tensor:
    chosen = torch.randint(vocabulary, (rows,), generator=torch.Generator().manual_seed(rows))
    chosen[:2] = torch.tensor([0, vocabulary - 1])[:rows]
    return chosen


@dtypes
@pytest.mark.parametrize("trains", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("rows", [0, 1, 13])
@pytest.mark.usefixtures("poisoned", "small")
def test_matches_float64(rows: int, trains: bool, dtype: torch.dtype) -> None:
    inputs = {
        "hidden": random(rows, 24, dtype=dtype, device=CPU).requires_grad_(),
        "weight": random(61, 24, dtype=dtype, device=CPU, scale=0.3).requires_grad_(trains),
        "targets": labels(rows, 61),
    }
    compare(linear_cross_entropy_torch, linear_cross_entropy_reference, inputs)


@dtypes
@pytest.mark.parametrize("kind", ["int8", "int4-g16"])
@pytest.mark.usefixtures("poisoned", "small")
def test_quantized_head(kind: str, dtype: torch.dtype) -> None:
    weight = quantized(kind, 61, 48, CPU)
    hidden = random(13, 48, dtype=dtype, device=CPU, scale=0.3).requires_grad_()
    compare(
        partial(linear_cross_entropy_torch, weight=weight),
        partial(linear_cross_entropy_reference, weight=weight),
        {"hidden": hidden, "targets": labels(13, 61)},
    )


def test_keeps_the_gradient_of_hidden_alone() -> None:
    hidden = random(13, 24, device=CPU).requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        linear_cross_entropy_torch(hidden, random(61, 24, device=CPU), labels(13, 61))
    assert [t.shape for t in kept] == [hidden.shape]


def test_without_recording() -> None:
    hidden, weight = random(5, 24, device=CPU).requires_grad_(), random(61, 24, device=CPU)
    recorded = linear_cross_entropy_torch(hidden, weight, labels(5, 61))
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy_torch(hidden, weight, labels(5, 61)), recorded)


def test_large_logits() -> None:
    hidden = (random(3, 24, device=CPU) * 100).requires_grad_()
    inputs = {"hidden": hidden, "weight": random(61, 24, device=CPU), "targets": labels(3, 61)}
    compare(linear_cross_entropy_torch, linear_cross_entropy_reference, inputs)


def test_autocast_computes_in_its_dtype() -> None:
    hidden = random(5, 24, device=CPU).requires_grad_()
    weight, targets = random(61, 24, device=CPU).requires_grad_(), labels(5, 61)
    with torch.autocast("cpu", torch.bfloat16):
        ours = linear_cross_entropy_torch(hidden, weight, targets)
        theirs = linear_cross_entropy_reference(hidden, weight, targets)
    torch.testing.assert_close(ours, theirs)
    for mine, his in zip(
        *(torch.autograd.grad(loss, (hidden, weight)) for loss in (ours, theirs)), strict=True
    ):
        assert mine.dtype == torch.float32
        assert (mine - his).abs().max() <= 2**-7 * his.abs().max()
