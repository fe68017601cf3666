"""lora_linear by Triton: values and gradients by name, dropout by a counter, what is kept for backward."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from owl_fast import ops
from owl_fast.kernels.dropout import Dropout, keep_mask, keep_mask_reference
from owl_fast.kernels.launch import jit, launch, recording, tl
from owl_fast.kernels.linear_backward import launch_spec, outer
from owl_fast.kernels.lora_linear import LoraUpdate, lora_linear_triton
from owl_fast.kernels.weights import Weight, dequantize
from tests.kernels.linears import FORMATS, weight_of
from tests.kernels.tensors import DTYPES, compare, random, strided
from tests.tolerances import assert_as_good_as_torch

OUTPUTS, INNER = 83, 75
PARTS = {"q": (0, 30, 4.0), "v": (61, 83, 0.5)}  # rows 30..61 carry no update
RANK = {"q": 8, "v": 3}

dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def updates_of(given: dict[str, Tensor], dropout: float) -> list[LoraUpdate]:
    return [
        LoraUpdate(start, end, given[f"{name}.a"], given[f"{name}.b"], scale, dropout)
        for name, (start, end, scale) in PARTS.items()
    ]


def ours(frozen: Weight | None, dropout: float = 0.0, **given: Tensor) -> Tensor:
    used = given["weight"] if frozen is None else frozen
    return lora_linear_triton(given["x"], used, given.get("bias"), updates_of(given, dropout))


def reference(frozen: Weight | None, mask: Tensor | None = None, **given: Tensor) -> Tensor:
    """mask: what x is multiplied by before the updates."""
    x = given["x"]
    used = given["weight"] if frozen is None else dequantize(frozen, x.dtype)
    y = F.linear(x, used, given.get("bias"))
    source = x if mask is None else x * mask.to(x.dtype)
    for start, end, a, b, scale, _ in updates_of(given, 0.0):
        update = F.linear(F.linear(source, a.to(x.dtype)), b.to(x.dtype)) * scale
        y = y + F.pad(update, (start, OUTPUTS - end))
    return y


def inputs_of(
    rows: int, dtype: torch.dtype, device: torch.device, *, dense: bool = False
) -> dict[str, Tensor]:
    """Updates are float32 whatever x is, as they are trained; bias and, if dense, weight train as well."""
    given = {"x": strided(random(rows, INNER, dtype=dtype, device=device)).requires_grad_()}
    if dense:
        given["weight"] = random(OUTPUTS, INNER, dtype=dtype, device=device).requires_grad_()
        given["bias"] = random(OUTPUTS, dtype=dtype, device=device).requires_grad_()
    for name, (start, end, _) in PARTS.items():
        given[f"{name}.a"] = random(RANK[name], INNER, device=device, seed=3).requires_grad_()
        given[f"{name}.b"] = random(end - start, RANK[name], device=device, seed=4).requires_grad_()
    return given


@dtypes
@pytest.mark.parametrize("rows", [1, 67], ids=lambda n: f"M{n}")
@pytest.mark.usefixtures("poisoned")
def test_everything_trains(device: torch.device, rows: int, dtype: torch.dtype) -> None:
    given = inputs_of(rows, dtype, device, dense=True)
    compare(lambda **g: ours(None, **g), lambda **g: reference(None, **g), given)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.usefixtures("poisoned")
def test_frozen_weights(device: torch.device, form: str) -> None:
    dtype = torch.bfloat16
    weight = weight_of(form, OUTPUTS, INNER, dtype, device)
    compare(lambda **g: ours(weight, **g), lambda **g: reference(weight, **g), inputs_of(66, dtype, device))


@dtypes
@pytest.mark.usefixtures("poisoned")
def test_dropout(device: torch.device, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    drop = Dropout(7**20, 0.25)
    monkeypatch.setattr(Dropout, "draw", lambda probability: drop._replace(probability=probability))
    rows, weight = 67, weight_of("dense", OUTPUTS, INNER, dtype, device)
    mask = keep_mask_reference(drop, rows, INNER).to(device) * drop.scale
    given = inputs_of(rows, dtype, device)
    compare(lambda **g: ours(weight, 0.25, **g), lambda **g: reference(weight, mask, **g), given)


@jit
def _write_mask(out, seed, threshold, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * COLUMNS
    places = rows[:, None] * columns + first + tl.arange(0, COLUMNS)[None, :]
    tl.store(out + places, keep_mask(seed, threshold, rows, first, COLUMNS).to(tl.int8))


@pytest.mark.parametrize("tile", [(16, 16), (32, 64)], ids=str)
def test_mask_is_a_function_of_seed_and_place(device: torch.device, tile: tuple[int, int]) -> None:
    drop = Dropout.draw(0.3)
    out = torch.empty(64, 128, dtype=torch.int8, device=device)
    grid = 64 // tile[0], 128 // tile[1]
    launch(_write_mask, grid, out, drop.seed, drop.threshold, 128, ROWS=tile[0], COLUMNS=tile[1])
    assert torch.equal(out.bool().cpu(), keep_mask_reference(drop, 64, 128))


def test_masks_drop_what_they_should_and_differ() -> None:
    first, second = (
        keep_mask_reference(Dropout(seed, 0.1), 400, 500).double() for seed in (2**40 + 1, 2**40 + 3)
    )
    for mask in (first, second):
        assert abs(mask.mean() - 0.9) < 0.004  # six standard deviations of 200,000 places
        assert abs(mask.mean(0) - 0.9).max() < 0.09
        assert abs(mask.mean(1) - 0.9).max() < 0.08
    rest = first - 0.9
    for other in (second - 0.9, rest.roll(1, 0), rest.roll(1, 1), rest.roll(4, 1)):
        assert abs((rest * other).mean()) < 0.0012  # six standard deviations: 0.09 / sqrt(200,000) each


def test_draws_follow_the_seed_of_torch() -> None:
    torch.manual_seed(3)
    first, second = Dropout.draw(0.1), Dropout.draw(0.1)
    torch.manual_seed(3)
    assert Dropout.draw(0.1) == first != second
    assert all(drop.seed % 2 == 1 and drop.seed > 1 << 32 for drop in (first, second))


@pytest.mark.parametrize("shape", [(300, 5, 40), (300, 70, 67), (3, 65, 130)], ids=str)
@pytest.mark.usefixtures("poisoned")
def test_sums_over_rows_in_parts(device: torch.device, shape: tuple[int, int, int]) -> None:
    rows, i, j = shape
    assert (launch_spec(rows, i, j, torch.float32, 90)["PARTS"] > 1) == (rows == 300)
    left, right = strided(random(rows, i, device=device)), strided(random(rows, j, device=device))
    compare(lambda left, right: outer(left, right, left.dtype), lambda left, right: left.T @ right,
            {"left": left, "right": right})  # fmt: skip
    assert torch.equal(outer(left, right, torch.float32), outer(left, right, torch.float32))


def test_without_rows(device: torch.device) -> None:
    given = inputs_of(5, torch.float32, device, dense=True)
    given["x"] = given["x"].detach()[:0].requires_grad_()
    ours(None, **given).sum().backward()
    assert given["x"].grad is not None
    assert all(not g.grad.any() for g in given.values() if g.grad is not None)


@pytest.mark.parametrize("activation", ["swiglu", "quick_gelu"])
@pytest.mark.usefixtures("poisoned")
def test_activation_and_residual_with_gradients(device: torch.device, activation: ops.Activation) -> None:
    width = 20 if activation == "swiglu" else 40
    given = {
        "x": random(2, 3, 9, device=device).requires_grad_(),
        "weight": random(40, 9, device=device).requires_grad_(),
        "residual": random(2, 3, width, device=device, seed=2).requires_grad_(),
    }

    def run(used: bool, **inputs: Tensor) -> Tensor:
        with ops.kernels(used):
            return ops.lora_linear(**inputs, activation=activation)

    compare(lambda **g: run(True, **g), lambda **g: run(False, **g), given)
    with torch.no_grad():
        torch.testing.assert_close(run(True, **given), run(False, **given))


def test_keeps_x_alone(device: torch.device) -> None:
    """Beside its inputs nothing is saved for backward, and no weight is written out in backward."""
    weight = weight_of("int4-G16", OUTPUTS, INNER, torch.bfloat16, device)
    given, kept_places = inputs_of(67, torch.bfloat16, device), set()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept_places.add(t.data_ptr()) or t, lambda t: t):
        y = ours(weight, 0.1, **given)
    assert kept_places <= {t.data_ptr() for t in given.values()}
    with recording() as recorder:
        y.sum().backward()
    shapes = {tuple(t.shape) for one in recorder.launches for t in one.args if isinstance(t, Tensor)}
    assert shapes.isdisjoint({(OUTPUTS, INNER), (INNER, OUTPUTS)})


def test_backward_is_the_same_in_every_run(device: torch.device) -> None:
    def gradients() -> list[Tensor]:
        torch.manual_seed(1)
        given = inputs_of(150, torch.float32, device, dense=True)
        ours(None, 0.2, **given).square().sum().backward()
        return [t.grad for t in given.values() if t.grad is not None]

    assert all(torch.equal(*pair) for pair in zip(gradients(), gradients(), strict=True))


def test_checkpointed_dropout_is_the_same_mask(device: torch.device) -> None:
    from torch.utils.checkpoint import checkpoint

    grads = []
    for through in (lambda f, **g: f(**g), lambda f, **g: checkpoint(f, use_reentrant=False, **g)):
        torch.manual_seed(2)
        given = inputs_of(9, torch.float32, device, dense=True)
        through(lambda **g: ours(None, 0.5, **g), **given).sum().backward()
        grads.append(given["q.b"].grad)
    assert torch.equal(*grads)


def test_autocast_computes_in_its_dtype(device: torch.device) -> None:
    x, weight = random(5, 40, device=device), random(16, 40, device=device).requires_grad_()
    residual = random(5, 16, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        y = lora_linear_triton(x, weight, residual=residual)
        plain = residual + F.linear(x, weight)
        inference = lora_linear_triton(x, weight.detach(), residual=residual)
    exact = residual.double() + F.linear(x.double(), weight.double())
    assert_as_good_as_torch(y, plain, exact)
    assert torch.equal(inference, y)
    y.sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_refuses_what_does_not_fit(device: torch.device) -> None:
    x, weight = random(2, 8, device=device), random(4, 8, device=device)
    a, b = random(2, 8, device=device), random(4, 2, device=device)
    whole = LoraUpdate(0, 4, a, b, 1.0, 0.5)
    for message, updates in {
        "rows [0, 5)": [whole._replace(end=5)],
        "float32 (2, 7)": [whole._replace(a=a[:, :7])],
        "float32 (3, 2)": [whole._replace(b=b[:3])],
        "dropout 0.1": [whole, whole._replace(dropout=0.1)],
        "dropout 1.0": [whole._replace(dropout=1.0)],
    }.items():
        with pytest.raises(ValueError, match=re.escape(message) + ".* came; wanted"):
            lora_linear_triton(x, weight, None, updates)
