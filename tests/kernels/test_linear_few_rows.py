"""Linear layer on few rows, with all that is fused into it, against float64."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from owl_fast.kernels.launch import recording
from owl_fast.kernels.linear_few_rows import MOST_ROWS, ROWS, linear_few_rows, tensor_rows_spec
from owl_fast.kernels.lora_linear import fused_linear_reference
from owl_fast.kernels.weights import Int4Weight, Int8Weight, StackedLora, dequantize
from tests.kernels.tensors import DTYPES, compare, random, strided

EPS = 1e-6
FORMATS = {  # of weights and activations
    f"{kind}-{name}": (kind, DTYPES[name])
    for kind, names in {
        "dense": ("fp32", "bf16", "fp16"),
        "int8": ("fp32", "bf16"),
        "int4-16": ("bf16",),
        "int4-32": ("bf16", "fp16"),
        "int4-48": ("fp32",),
    }.items()
    for name in names
}
formats = pytest.mark.parametrize(("kind", "dtype"), FORMATS.values(), ids=FORMATS)


def weight_parts(
    kind: str, outputs: int, inputs: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Any]:
    """kind: dense, int8, or int4 and the size of a group."""
    if kind == "dense":
        return {"w": random(outputs, inputs, dtype=dtype, device=device, seed=1)}
    generator = torch.Generator().manual_seed(2)
    if kind == "int8":
        q = torch.randint(-128, 128, (outputs, inputs), dtype=torch.int8, generator=generator)
        return {"q": q.to(device), "s": random(outputs, device=device).abs() / 100}
    group = int(kind.removeprefix("int4-"))
    q = torch.randint(0, 256, (outputs, -(-inputs // 2)), dtype=torch.uint8, generator=generator)
    return {"q": q.to(device), "s": random(outputs, -(-inputs // group), device=device).half() / 8}


def weight_of(kind: str, inputs: int, parts: dict[str, Tensor]) -> Any:
    if kind == "dense":
        return parts["w"]
    if kind == "int8":
        return Int8Weight(parts["q"], parts["s"])
    return Int4Weight(parts["q"], parts["s"], inputs, int(kind.removeprefix("int4-")))


def check(
    kind: str,
    rows: int,
    outputs: int,
    inputs: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    activation: str | None = None,
    index: list[int] | None = None,
    rank: int = 0,
    around: bool = False,
) -> None:
    """linear_few_rows beside its reference. around: bias, norm and residual; rank: of three adapters."""

    def make(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
        return random(*shape, dtype=dtype, device=device, seed=seed, scale=scale)

    given = {"x": strided(make(rows, inputs, seed=3)), **weight_parts(kind, outputs, inputs, dtype, device)}
    if kind == "dense":
        given["w"] = strided(given["w"])
    if around:
        width = outputs // 2 if activation == "swiglu" else outputs
        given.update(bias=make(outputs, seed=4), norm=make(inputs, seed=5))
        given["residual"] = strided(make(rows, width, seed=6))
    if rank:
        given.update(a=make(3, rank, inputs, seed=7, scale=inputs**-0.5), b=make(3, outputs, rank, seed=8))
        given["scale"] = random(3, rank, device=device, seed=9)
    chosen = None if index is None else torch.tensor(index, dtype=torch.int32, device=device)

    def through(function: Any) -> Any:
        def run(**parts: Tensor) -> Tensor:
            lora = StackedLora(parts["a"], parts["b"], parts["scale"], chosen) if rank else None
            norm = (parts["norm"], EPS) if around else None
            y = function(
                parts["x"],
                weight_of(kind, inputs, parts),
                parts.get("bias"),
                lora,
                norm=norm,
                activation=activation,
                residual=parts.get("residual"),
            )
            return torch.as_tensor(y)

        return run

    compare(through(linear_few_rows), through(fused_linear_reference), given)


@formats
@pytest.mark.parametrize(
    ("rows", "outputs", "inputs"),
    [
        (0, 3, 8),
        (1, 9, 64),
        (3, 5, 61),
        (4, 4, 527),
        (5, 33, 96),
        (16, 3, 79),
        (17, 5, 61),
        (33, 3, 79),
        (64, 7, 96),
    ],
    ids=lambda n: str(n),
)
@pytest.mark.usefixtures("poisoned")
def test_matches_float64(
    device: torch.device, rows: int, outputs: int, inputs: int, kind: str, dtype: torch.dtype
) -> None:
    check(kind, rows, outputs, inputs, dtype, device)


@formats
@pytest.mark.parametrize("activation", [None, "swiglu", "quick_gelu"])
@pytest.mark.parametrize("rows", [2, 6], ids=lambda rows: f"M{rows}")
@pytest.mark.usefixtures("poisoned")
def test_norm_bias_activation_and_residual(
    device: torch.device, rows: int, activation: str | None, kind: str, dtype: torch.dtype
) -> None:
    check(kind, rows, 22, 270, dtype, device, activation=activation, around=True)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("rank", [1, 8, 19], ids=lambda rank: f"R{rank}")
@pytest.mark.parametrize("index", [None, [2], [-1, 2, 0], [0, -1, 2, 2, -1]], ids=["one", "M1", "M3", "M5"])
@pytest.mark.usefixtures("poisoned")
def test_adapters_by_row(
    device: torch.device, index: list[int] | None, rank: int, dtype: torch.dtype
) -> None:
    rows = 3 if index is None else len(index)
    check(
        "int8" if rank == 8 else "dense",
        rows,
        13,
        70,
        dtype,
        device,
        index=index,
        rank=rank,
        around=rank == 19,
    )


@pytest.mark.parametrize("rows", [2, 6], ids=lambda rows: f"M{rows}")
def test_the_largest_rank(device: torch.device, rows: int) -> None:
    check("dense", rows, 5, 24, torch.bfloat16, device, index=[1] * rows, rank=128)


@pytest.mark.parametrize("rows", [ROWS, 16, 33], ids=lambda rows: f"M{rows}")
@pytest.mark.parametrize("kind", ["dense", "int8", "int4-32"])
def test_a_row_keeps_its_bits_whatever_stands_beside_it(device: torch.device, rows: int, kind: str) -> None:
    """Its neighbours full of NaN, with adapters full of NaN, fewer of them, or none."""
    inputs, outputs, dtype = 70, 13, torch.bfloat16
    weight = weight_of(kind, inputs, weight_parts(kind, outputs, inputs, dtype, device))
    x, norm = random(rows, inputs, dtype=dtype, device=device), random(inputs, dtype=dtype, device=device)
    a, b = random(2, 3, inputs, dtype=dtype, device=device), random(2, outputs, 3, dtype=dtype, device=device)
    scale = torch.ones(2, 3, device=device)
    index = torch.zeros(rows, dtype=torch.int32, device=device)
    clean = linear_few_rows(x, weight, None, StackedLora(a, b, scale, index), norm=(norm, EPS))
    assert clean.isfinite().all()
    least = 1 if rows <= ROWS else ROWS + 1
    alone = linear_few_rows(x[:least], weight, None, StackedLora(a, b, scale), norm=(norm, EPS))
    assert torch.equal(alone, clean[:least])
    x[1:], a[1], b[1], index[1:] = math.nan, math.nan, math.nan, 1
    beside_nan = linear_few_rows(x, weight, None, StackedLora(a, b, scale, index), norm=(norm, EPS))
    assert torch.equal(beside_nan[0], clean[0])
    assert beside_nan[1:].isnan().all()


@pytest.mark.parametrize("kind", ["dense", "int8", "int4-32"])
def test_a_row_keeps_its_bits_in_tiles_of_any_size(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """5..64 rows, whatever else changes with their number: how many rows of x and of W a program takes."""
    inputs, outputs, dtype = 300, 150, torch.float16
    weight = weight_of(kind, inputs, weight_parts(kind, outputs, inputs, dtype, device))
    x, norm = random(64, inputs, dtype=dtype, device=device), random(inputs, dtype=dtype, device=device)
    a, b = random(2, 3, inputs, dtype=dtype, device=device), random(2, outputs, 3, dtype=dtype, device=device)
    index = (torch.arange(64, device=device) % 3 - 1).int()
    scale = torch.ones(2, 3, device=device)

    def run(rows: int) -> Tensor:
        return linear_few_rows(
            x[:rows], weight, None, StackedLora(a, b, scale, index[:rows]), norm=(norm, EPS)
        )

    whole = run(64)
    for rows in (5, 16, 17, 32, 33):
        assert torch.equal(run(rows), whole[:rows])
    for programs in (6, 1):  # blocks of 64 rows of W, of 128
        monkeypatch.setattr("owl_fast.kernels.linear_few_rows.BUSY", programs)
        assert torch.equal(run(64), whole)


@pytest.mark.parametrize("bits", [16, 8, 4], ids=lambda bits: f"W{bits}")
@pytest.mark.parametrize("outputs", [4096, 22016])
def test_the_order_of_summation_is_the_same_for_any_number_of_rows(outputs: int, bits: int) -> None:
    """With the same instructions, too: for tiles of 64 rows some GPUs have others."""
    specs = [tensor_rows_spec(rows, outputs, bits, 128, 8) for rows in range(5, MOST_ROWS + 1)]
    assert len({(spec["BLOCK_K"], spec["BLOCK_A"]) for spec in specs}) == 1
    assert {spec["BLOCK_M"] for spec in specs} == {16, 32}


@pytest.mark.parametrize("rows", [1, 5], ids=lambda rows: f"M{rows}")
def test_no_adapter_is_no_adapter(device: torch.device, rows: int) -> None:
    x, weight = (random(*shape, dtype=torch.bfloat16, device=device) for shape in ((rows, 40), (9, 40)))
    a, b = (torch.full(shape, math.nan, dtype=x.dtype, device=device) for shape in ((1, 2, 40), (1, 9, 2)))
    lora = StackedLora(a, b, torch.ones(1, 2, device=device), torch.full((rows,), -1, dtype=torch.int32))
    lora = lora._replace(owner=lora.owner.to(device)) if lora.owner is not None else lora
    assert torch.equal(linear_few_rows(x, weight, None, lora), linear_few_rows(x, weight))


def test_rows_split_among_programs_with_adapters(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More blocks than programs: each takes several."""
    monkeypatch.setattr("owl_fast.kernels.linear_few_rows.PROGRAMS", 2)
    for rows in (3, 7, 35):
        check("dense", rows, 70, 24, torch.float16, device, rank=4)


def test_dequantized_products_are_exact(device: torch.device) -> None:
    """Every int8 and every int4 value, one at a time."""
    for kind, count in (("int8", 256), ("int4", 16)):
        values = torch.arange(count, dtype=torch.uint8)
        if kind == "int8":
            weight: Any = Int8Weight(values.view(torch.int8)[None].to(device), torch.ones(1, device=device))
        else:
            packed = values[0::2] | values[1::2] << 4
            scale = torch.ones(1, 1, dtype=torch.float16, device=device)
            weight = Int4Weight(packed[None].to(device), scale, 16, 16)
        ones = torch.eye(count, device=device)
        y = torch.cat([linear_few_rows(part, weight) for part in ones.split(16)])
        assert torch.equal(y.T, dequantize(weight, torch.float32))


def test_one_launch(device: torch.device) -> None:
    x, weight = random(2, 8, device=device), random(6, 8, device=device)
    lora = StackedLora(*(random(*s, device=device) for s in ((1, 2, 8), (1, 6, 2), (1, 2))))
    with recording() as recorder:
        linear_few_rows(x, weight, weight[:, 0].contiguous(), lora, norm=(x[0], EPS), activation="swiglu")
    assert len(recorder.launches) == 1


def test_refuses_what_does_not_fit(device: torch.device) -> None:
    x, weight = random(2, 32, device=device), random(6, 32, device=device)
    int4 = Int4Weight(
        torch.zeros(6, 16, dtype=torch.uint8, device=device), torch.zeros(6, 2, device=device).half(), 32, 16
    )
    index = torch.zeros(2, device=device)
    lora = StackedLora(*(random(*s, device=device) for s in ((1, 2, 32), (1, 6, 2), (1, 2))), index)
    cases: tuple[tuple[tuple[Any, ...], dict[str, Any], str], ...] = (
        ((random(65, 32, device=device), weight), {}, "float32 (65, 32)"),
        ((x.double(), weight.double()), {}, "float64 (2, 32)"),
        ((x, weight.half()), {}, "float16 (6, 32)"),
        ((x, weight[:, :31]), {}, "a weight of 31 inputs"),
        ((x, weight.T.contiguous().T), {}, "with strides (1, 6)"),
        ((x, int4._replace(group=24)), {}, "group 24"),
        ((x, int4._replace(scale=int4.scale.float())), {}, "float32 (6, 2)"),
        ((x, weight, weight[0]), {}, "float32 (32,)"),
        ((x, weight, None, lora), {}, "float32 (2,)"),
        ((x, weight, None, lora._replace(a=lora.a.half(), owner=None)), {}, "float16 (1, 2, 32)"),
        ((x, weight), {"activation": "gelu"}, "activation 'gelu'"),
        ((x, weight[:5]), {"activation": "swiglu"}, "5 outputs"),
        ((x, weight), {"norm": (x, EPS)}, "float32 (2, 32)"),
        ((x, weight), {"residual": x}, "float32 (2, 32)"),
    )
    for args, settings, words in cases:
        with pytest.raises(ValueError, match=re.escape(words) + ".*came; wanted"):
            linear_few_rows(*args, **settings)
