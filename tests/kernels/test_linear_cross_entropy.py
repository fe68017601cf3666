"""Head and loss in one, dense and quantized, frozen and trained: reference and kernels against float64."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
from torch import Tensor

from owl_fast.kernels import linear_cross_entropy as module
from owl_fast.kernels.linear_cross_entropy import (
    chunk_rows,
    linear_cross_entropy_reference,
    linear_cross_entropy_triton,
)
from tests.kernels.tensors import DTYPES, ROUNDED, compare, quantized, random

EVERY_DTYPE = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def labels(rows: int, vocabulary: int, device: torch.device) -> Tensor:
    """The first and the last word among them."""
    chosen = torch.randint(vocabulary, (rows,), generator=torch.Generator().manual_seed(rows))
    chosen[:2] = torch.tensor([0, vocabulary - 1])[:rows]
    return chosen.to(device)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two or three rows at a time, 64 logits of them, and 10 or 20 words of a quantized head."""
    monkeypatch.setattr(module, "launch_spec", lambda width: {"WIDTH": width, "BLOCK": 64, "num_warps": 1})
    monkeypatch.setattr(module, "chunk_rows", lambda rows, vocabulary, itemsize: min(-(-rows // 5) | 2, rows))
    monkeypatch.setattr(module, "SLICE_BYTES", 1600)


def test_reference_is_the_sum_over_rows() -> None:
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(5, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 8, generator=generator, dtype=torch.float64)
    targets = torch.tensor([0, 10, 3, 3, 7])
    loss = linear_cross_entropy_reference(hidden, weight, targets)
    log_probs = (hidden @ weight.T).log_softmax(-1)
    assert abs(loss.item() + sum(log_probs[i, t].item() for i, t in enumerate(targets.tolist()))) < 1e-10
    loss.backward()
    expected = (log_probs.exp() - torch.eye(11, dtype=torch.float64)[targets]) @ weight
    assert (hidden.grad - expected).abs().max() < 1e-10


@EVERY_DTYPE
@pytest.mark.parametrize("trains", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize(("rows", "vocabulary"), [(0, 7), (1, 1), (1, 61), (13, 131), (6, 257)])
@pytest.mark.usefixtures("poisoned", "small")
def test_triton_matches_float64(
    device: torch.device, rows: int, vocabulary: int, trains: bool, dtype: torch.dtype
) -> None:
    hidden = random(rows, 24, dtype=dtype, device=device).requires_grad_()
    weight = random(vocabulary, 24, dtype=dtype, device=device, scale=0.3).requires_grad_(trains)
    inputs = {"hidden": hidden, "weight": weight, "targets": labels(rows, vocabulary, device)}
    compare(linear_cross_entropy_triton, linear_cross_entropy_reference, inputs)


@pytest.mark.parametrize("dtype", ROUNDED.values(), ids=ROUNDED)
@pytest.mark.parametrize("kind", ["int8", "int4-g16"])
@pytest.mark.usefixtures("poisoned", "small")
def test_triton_quantized_head(device: torch.device, kind: str, dtype: torch.dtype) -> None:
    weight = quantized(kind, 31, 40, device)
    hidden = random(5, 40, dtype=dtype, device=device, scale=0.3).requires_grad_()
    inputs = {"hidden": hidden, "targets": labels(5, 31, device)}
    compare(
        partial(linear_cross_entropy_triton, weight=weight),
        partial(linear_cross_entropy_reference, weight=weight),
        inputs,
    )


def test_triton_large_logits(device: torch.device) -> None:
    hidden = (random(3, 24, device=device) * 100).requires_grad_()
    inputs = {"hidden": hidden, "weight": random(61, 24, device=device), "targets": labels(3, 61, device)}
    compare(linear_cross_entropy_triton, linear_cross_entropy_reference, inputs)


def test_triton_without_recording(device: torch.device) -> None:
    hidden = random(5, 24, device=device).requires_grad_()
    weight, targets = random(61, 24, device=device), labels(5, 61, device)
    recorded = linear_cross_entropy_triton(hidden, weight, targets)
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy_triton(hidden, weight, targets), recorded)
    assert not linear_cross_entropy_triton(hidden.detach(), weight, targets).requires_grad


def test_triton_a_target_outside_is_nan(device: torch.device) -> None:
    hidden, weight = random(3, 24, device=device), random(61, 24, device=device)
    for outside in (-1, 61):
        targets = torch.tensor([0, outside, 2], device=device)
        assert linear_cross_entropy_triton(hidden, weight, targets).isnan()


def test_triton_scales_by_what_comes_from_above(device: torch.device) -> None:
    """In float32: a factor rounded to half precision would shift the whole gradient."""
    hidden = random(5, 24, dtype=torch.float16, device=device).requires_grad_()
    weight, targets = random(61, 24, dtype=torch.float16, device=device), labels(5, 61, device)
    factor = 1.0 + 2.0**-11 + 2.0**-12  # 1 + 2^-10 in fp16
    (plain,) = torch.autograd.grad(linear_cross_entropy_triton(hidden, weight, targets), hidden)
    (scaled,) = torch.autograd.grad(linear_cross_entropy_triton(hidden, weight, targets) * factor, hidden)
    assert torch.equal(scaled, (plain.float() * factor).half())


@pytest.mark.parametrize(
    ("rows", "vocabulary", "itemsize", "chunk"),
    [
        (4096, 32000, 2, 2048),
        (5000, 32000, 2, 1792),
        (300, 32000, 2, 300),
        (4096, 32000, 4, 1024),
        (3, 1 << 28, 4, 1),
    ],
)
def test_chunks_fit_and_are_even(rows: int, vocabulary: int, itemsize: int, chunk: int) -> None:
    assert chunk_rows(rows, vocabulary, itemsize) == chunk


def test_triton_refuses_what_does_not_fit(device: torch.device) -> None:
    hidden, weight, targets = random(2, 8, device=device), random(5, 8, device=device), labels(2, 5, device)
    for bad, words in (
        ((hidden.double(), weight.double(), targets), "float64 (2, 8)"),
        ((hidden, weight[:, :4], targets), "float32 (5, 4)"),
        ((hidden, weight.half(), targets), "float16 (5, 8)"),
        ((hidden, quantized("int8", 5, 4, device), targets), "int8 (5, 4)"),
        ((hidden, weight, targets[:1]), "int64 (1,)"),
        ((hidden, weight, targets.int()), "int32 (2,)"),
    ):
        with pytest.raises(ValueError, match=re.escape(words) + ".* came; wanted"):
            linear_cross_entropy_triton(*bad)
