"""Norms and activations with gradients in torch: by name against float64, and what is kept for backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from owl_fast import ops
from owl_fast.kernels import rows_torch as module
from tests.kernels.tensors import CPU_DTYPES, compare, random

CPU = torch.device("cpu")
OPERATIONS = {
    "rms_norm": (lambda x, weight: ops.rms_norm(x, weight, 1e-6), ("weight",)),
    "layer_norm": (lambda x, weight, bias: ops.layer_norm(x, weight, bias, 1e-6), ("weight", "bias")),
    "quick_gelu": (lambda x, bias: ops.quick_gelu(x, bias), ("bias",)),
    "quick_gelu, no bias": (lambda x: ops.quick_gelu(x), ()),
    "swiglu": (lambda x: ops.swiglu(x), ()),
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows at a time."""
    monkeypatch.setattr(module, "BLOCK", 2 * 24)


def inputs_of(name: str, dtype: torch.dtype) -> dict[str, Tensor]:
    x = random(3, 7, 24, dtype=dtype, device=CPU)
    vectors = {v: random(24, dtype=dtype, device=CPU, seed=i) for i, v in enumerate(OPERATIONS[name][1])}
    return {key: t.requires_grad_() for key, t in ({"x": x} | vectors).items()}


def without_kernels(name: str, **given: Tensor) -> Tensor:
    with ops.kernels(False):
        return OPERATIONS[name][0](**given)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("dtype", CPU_DTYPES.values(), ids=CPU_DTYPES)
@pytest.mark.usefixtures("poisoned", "small")
def test_matches_float64(name: str, dtype: torch.dtype) -> None:
    if ops.uses_kernels(torch.empty(0)):
        pytest.skip("kernels run here")
    compare(OPERATIONS[name][0], lambda **g: without_kernels(name, **g), inputs_of(name, dtype))


@pytest.mark.parametrize("name", OPERATIONS)
def test_keeps_its_inputs_alone(name: str) -> None:
    given = inputs_of(name, torch.bfloat16)
    kept: set[int] = set()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.add(t.data_ptr()) or t, lambda t: t):
        OPERATIONS[name][0](**given)
    assert kept <= {t.data_ptr() for t in given.values()}


def test_frozen_vectors_get_no_gradient() -> None:
    given = inputs_of("layer_norm", torch.float32)
    given["weight"].requires_grad_(False)
    OPERATIONS["layer_norm"][0](**given).sum().backward()
    assert given["weight"].grad is None
    assert all(given[name].grad is not None for name in ("x", "bias"))
