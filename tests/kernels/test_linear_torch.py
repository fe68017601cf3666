"""linear_torch: values and gradients by name, what is kept for backward, how much of W is there at a time."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.live_memory import LiveMemory
from owl_fast.kernels import linear_torch as module
from owl_fast.kernels.linear_torch import column_pieces, linear_torch, row_pieces
from owl_fast.kernels.lora_linear import LoraUpdate, lora_linear_reference
from owl_fast.kernels.weights import Weight, dequantize
from tests.kernels.tensors import CPU_DTYPES, compare, quantized, random, strided

CPU = torch.device("cpu")
OUTPUTS, INNER = 45, 52
PARTS = {"q": (0, 20, 4.0), "v": (31, 45, 0.5)}  # rows 20..31 carry no update
dtypes = pytest.mark.parametrize("dtype", CPU_DTYPES.values(), ids=CPU_DTYPES)
KINDS = ("int8", "int4-g16", "int4-g6")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows or some columns of W at a time."""
    monkeypatch.setattr(module, "PIECE", 3 * INNER)


def updates_of(given: dict[str, Tensor], dropout: float = 0.0) -> list[LoraUpdate]:
    return [
        LoraUpdate(start, end, given[f"{name}.a"], given[f"{name}.b"], scale, dropout)
        for name, (start, end, scale) in PARTS.items()
        if f"{name}.a" in given
    ]


def inputs_of(rows: int, dtype: torch.dtype, *, dense: bool, lora: bool = True) -> dict[str, Tensor]:
    given = {"x": strided(random(rows, INNER, dtype=dtype, device=CPU)).requires_grad_()}
    given["residual"] = random(rows, OUTPUTS, dtype=dtype, device=CPU, seed=7).requires_grad_()
    if dense:
        given["weight"] = random(OUTPUTS, INNER, dtype=dtype, device=CPU).requires_grad_()
        given["bias"] = random(OUTPUTS, dtype=dtype, device=CPU).requires_grad_()
    for name, (start, end, _) in PARTS.items() if lora else ():
        given[f"{name}.a"] = random(8, INNER, device=CPU, seed=3).requires_grad_()
        given[f"{name}.b"] = random(end - start, 8, device=CPU, seed=4).requires_grad_()
    return given


def ours(frozen: Weight | None, **given: Tensor) -> Tensor:
    weight = given["weight"] if frozen is None else frozen
    return linear_torch(given["x"], weight, given.get("bias"), updates_of(given), given["residual"])


def reference(frozen: Weight | None, **given: Tensor) -> Tensor:
    weight = given["weight"] if frozen is None else frozen
    return given["residual"] + lora_linear_reference(given["x"], weight, given.get("bias"), updates_of(given))


@dtypes
@pytest.mark.parametrize("rows", [1, 67], ids=lambda n: f"M{n}")
@pytest.mark.usefixtures("poisoned")
def test_everything_trains(rows: int, dtype: torch.dtype) -> None:
    given = inputs_of(rows, dtype, dense=True)
    compare(lambda **g: ours(None, **g), lambda **g: reference(None, **g), given)


@dtypes
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("poisoned", "small")
def test_frozen_and_quantized(kind: str, dtype: torch.dtype) -> None:
    weight = quantized(kind, OUTPUTS, INNER, CPU)
    given = inputs_of(66, dtype, dense=False)
    compare(lambda **g: ours(weight, **g), lambda **g: reference(weight, **g), given)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("small")
def test_pieces_are_the_weight(kind: str) -> None:
    weight = quantized(kind, OUTPUTS, INNER, CPU)
    whole = dequantize(weight, torch.bfloat16)
    for pieces, dim in ((row_pieces, 0), (column_pieces, 1)):
        found = list(pieces(weight, torch.bfloat16))
        assert len(found) > 2
        assert torch.equal(torch.cat([part for _, part in found], dim), whole)
        places = [i for where, _ in found for i in range(where.start, where.stop)]
        assert places == list(range(whole.shape[dim]))


def test_a_dense_weight_is_one_piece() -> None:
    weight = random(5, 4, device=CPU)
    for pieces in (row_pieces, column_pieces):
        ((_, part),) = pieces(weight, torch.float32)
        assert part is weight


def saved_by(work: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        result = work()
    return result, kept


@pytest.mark.parametrize("kind", ["dense", *KINDS])
def test_a_frozen_layer_keeps_nothing(kind: str) -> None:
    weight = random(OUTPUTS, INNER, device=CPU) if kind == "dense" else quantized(kind, OUTPUTS, INNER, CPU)
    given = inputs_of(9, torch.float32, dense=False, lora=False)
    _, kept = saved_by(lambda: ours(weight, **given))
    assert [t for t in kept if t is not weight] == []


def test_with_updates_it_keeps_its_input() -> None:
    weight = quantized("int8", OUTPUTS, INNER, CPU)
    given = inputs_of(9, torch.float32, dense=False)
    _, kept = saved_by(lambda: ours(weight, **given))
    assert {t.data_ptr() for t in kept} == {t.data_ptr() for n, t in given.items() if n != "residual"}


@pytest.mark.parametrize("kind", ["int8", "int4-g16"])
def test_no_copy_of_the_weight_is_made(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In forward and backward a few pieces of it are there at a time."""
    monkeypatch.setattr(module, "PIECE", 1 << 10)
    weight = quantized(kind, 256, 1024, CPU)
    x = random(3, 1024, dtype=torch.bfloat16, device=CPU).requires_grad_()
    with LiveMemory() as live:
        linear_torch(x, weight).backward(torch.ones(3, 256, dtype=torch.bfloat16))
    assert 0 < live.peak < 256 * 1024 // 2
    assert x.grad is not None


def test_dropout_is_the_same_mask_in_backward() -> None:
    torch.manual_seed(0)
    x = torch.ones(4, 50, requires_grad=True)
    update = LoraUpdate(0, 1, torch.ones(1, 50), torch.ones(1, 1), 1.0, 0.5)
    y = linear_torch(x, torch.zeros(1, 50), None, [update])
    y.sum().backward()
    assert x.grad is not None
    assert set(x.grad.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(x.grad.sum(1), y[:, 0])


def test_dropout_follows_the_seed_of_torch() -> None:
    update = LoraUpdate(0, 1, torch.ones(1, 50), torch.ones(1, 1), 1.0, 0.5)

    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return linear_torch(torch.ones(4, 50), torch.zeros(1, 50), None, [update])

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_autocast_keeps_no_cast_weight() -> None:
    """Products in bf16, gradients of a float32 weight in float32, and no copy of it waits for backward."""
    x, weight = random(5, 40, device=CPU).requires_grad_(), random(16, 40, device=CPU).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y, kept = saved_by(lambda: linear_torch(x, weight))
    assert y.dtype == torch.bfloat16
    assert [(t.shape, t.dtype) for t in kept if t is not weight] == [((5, 40), torch.bfloat16)]
    y.sum().backward()
    assert weight.grad is not None
    assert (weight.grad.dtype, x.grad.dtype) == (torch.float32, torch.float32)


def test_nothing_outlives_backward() -> None:
    """The function's own memory goes with the graph."""
    x = random(5, 40, device=CPU).requires_grad_()
    y = linear_torch(x, quantized("int8", 16, 40, CPU))
    gone = weakref.ref(y)
    y.sum().backward()
    del y
    assert gone() is None
