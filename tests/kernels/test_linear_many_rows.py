"""Linear layer for many rows: every weight format, updates and what follows, against float64."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from owl_fast.kernels.launch import recording
from owl_fast.kernels.linear_many_rows import launch_spec, linear_many_rows
from owl_fast.kernels.lora_linear import fused_linear_reference
from owl_fast.kernels.weights import Int4Weight, Int8Weight, StackedLora, Weight
from tests.kernels.linears import FORMATS, lora_of, weight_of
from tests.kernels.tensors import DTYPES, compare, random, strided

BF16 = torch.bfloat16
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
formats = pytest.mark.parametrize("form", FORMATS)


def check(inputs: dict[str, Tensor], weight: Weight, **fixed: object) -> None:
    compare(
        lambda **given: linear_many_rows(weight=weight, **given, **fixed),
        lambda **given: fused_linear_reference(weight=weight, **given, **fixed),
        inputs,
    )


@dtypes
@formats
@pytest.mark.parametrize(
    ("rows", "outputs", "inner"),
    [(1, 17, 63), (65, 67, 129)],
    ids=lambda n: str(n),
)
@pytest.mark.usefixtures("poisoned")
def test_matches_float64(
    device: torch.device, rows: int, outputs: int, inner: int, form: str, dtype: torch.dtype
) -> None:
    inputs = {
        "x": strided(random(rows, inner, dtype=dtype, device=device)),
        "bias": random(outputs, dtype=dtype, device=device),
        "residual": strided(random(rows, outputs, dtype=dtype, device=device, seed=2)),
    }
    check(inputs, weight_of(form, outputs, inner, dtype, device))


@pytest.mark.parametrize("form", ["dense", "int8", "int4-G128"])
@pytest.mark.usefixtures("poisoned")
def test_large_tiles(device: torch.device, form: str) -> None:
    """More rows than the small tiles are for, and more tiles than one band."""
    x = random(1030, 70, dtype=BF16, device=device)
    check({"x": x}, weight_of(form, 260, 70, BF16, device), lora=lora_of(1, 8, 260, 70, 1030, BF16, device))


@pytest.mark.parametrize(
    ("form", "activation"), [("dense", None), ("int8", "swiglu"), ("int4-G128", "quick_gelu")]
)
@pytest.mark.usefixtures("poisoned")
def test_inner_sum_in_parts(device: torch.device, activation: str | None, form: str) -> None:
    """Too few tiles to fill a GPU: the parts are finished by a second kernel."""
    rows, outputs, inner = 3, 18, 4097
    assert launch_spec(rows, outputs, inner, BF16, 90, "dense")["PARTS"] == 4
    width = outputs // 2 if activation == "swiglu" else outputs
    inputs = {
        "x": random(rows, inner, dtype=BF16, device=device, scale=inner**-0.5),
        "bias": random(outputs, dtype=BF16, device=device),
        "residual": random(rows, width, dtype=BF16, device=device, seed=2),
    }
    lora = lora_of(1, 5, outputs, inner, rows, BF16, device)
    check(inputs, weight_of(form, outputs, inner, BF16, device), activation=activation, lora=lora)


@dtypes
@pytest.mark.parametrize("activation", ["swiglu", "quick_gelu"])
@pytest.mark.parametrize("form", ["dense", "int8", "int4-G16"])
@pytest.mark.usefixtures("poisoned")
def test_activations(device: torch.device, form: str, activation: str, dtype: torch.dtype) -> None:
    rows, outputs, inner = 7, 134, 65
    width = outputs // 2 if activation == "swiglu" else outputs
    inputs = {
        "x": random(rows, inner, dtype=dtype, device=device, scale=inner**-0.5),
        "bias": random(outputs, dtype=dtype, device=device),
        "residual": random(rows, width, dtype=dtype, device=device, seed=2),
    }
    lora = lora_of(1, 4, outputs, inner, rows, dtype, device)
    check(inputs, weight_of(form, outputs, inner, dtype, device), activation=activation, lora=lora)


@dtypes
@pytest.mark.parametrize("rank", [1, 17, 128], ids=lambda r: f"R{r}")
@pytest.mark.parametrize("adapters", [1, 3], ids=lambda n: f"A{n}")
@pytest.mark.usefixtures("poisoned")
def test_updates(device: torch.device, adapters: int, rank: int, dtype: torch.dtype) -> None:
    rows, outputs, inner = 70, 67, 131
    x = strided(random(rows, inner, dtype=dtype, device=device))
    lora = lora_of(adapters, rank, outputs, inner, rows, dtype, device)
    check({"x": x}, weight_of("dense", outputs, inner, dtype, device), lora=lora)


def test_rows_without_adapter_are_the_plain_layer(device: torch.device) -> None:
    x, weight = random(40, 33, device=device), random(20, 33, device=device, seed=1)
    lora = lora_of(2, 6, 20, 33, 40, torch.float32, device)
    none = lora.owner == -1
    assert torch.equal(linear_many_rows(x, weight, None, lora)[none], linear_many_rows(x, weight)[none])


@pytest.mark.parametrize("form", ["dense", "int4-G128"])
def test_rows_do_not_depend_on_their_number(device: torch.device, form: str) -> None:
    """Within one family of tiles: the same place of a tile, with other rows beside it."""
    x = random(130, 200, dtype=BF16, device=device)
    weight = weight_of(form, 70, 200, BF16, device)
    whole = linear_many_rows(x, weight)
    for rows in (1, 20, 64, 65):
        assert torch.equal(linear_many_rows(x[:rows], weight), whole[:rows])


@pytest.mark.parametrize("form", ["dense", "int8", "int4-G128"])
def test_exact_rows_do_not_depend_on_the_others(device: torch.device, form: str) -> None:
    """Nor on whose adapters there are, also where K is summed in parts."""
    outputs, inner, count = 34, 4097, 130
    x = random(count, inner, dtype=BF16, device=device, scale=inner**-0.5)
    weight, gain = weight_of(form, outputs, inner, BF16, device), random(outputs, dtype=BF16, device=device)
    lora = lora_of(2, 5, outputs, inner, count, BF16, device)
    assert lora.owner is not None

    def run(rows: slice, owned: bool = True) -> Tensor:
        part = lora._replace(owner=lora.owner[rows].contiguous()) if owned else None
        return linear_many_rows(x[rows], weight, gain, part, activation="swiglu", exact=True)

    whole = run(slice(0, count))
    for rows in (slice(0, 1), slice(70, 71), slice(3, 20), slice(60, 129)):
        assert torch.equal(run(rows), whole[rows])
    one = int((lora.owner == -1).nonzero()[0])
    assert torch.equal(run(slice(one, one + 1), owned=False)[0], whole[one])


@pytest.mark.parametrize("capability", [80, 86, 90, 100, 120])
def test_exact_is_one_size_of_tiles(capability: int) -> None:
    """At the widths of the 7B model, for a decode step as for the largest chunk."""
    with recording(capability) as recorder:
        for rows in (1, 16, 17, 600, 8192):
            x, weight = (torch.empty(n, 4096, dtype=BF16, device="meta") for n in (rows, 4096))
            linear_many_rows(x, weight, exact=True)
    settings = [launch.settings for launch in recorder.launches if launch.name == "_linear_kernel"]
    assert len(settings) == 5
    assert all(each == settings[0] for each in settings)


@pytest.mark.parametrize("capability", [80, 86, 87, 89, 90, 100, 103, 120, 121])
def test_inner_steps_do_not_depend_on_rows(capability: int) -> None:
    for dtype in DTYPES.values():
        for form in ("dense", "int8", "int4"):
            specs = [launch_spec(m, 4096, 4096, dtype, capability, form) for m in (1, 165, 513, 8192)]
            assert len({spec["BLOCK_K"] for spec in specs}) == 1
            assert [spec["PARTS"] for spec in specs][2:] == [1, 1]


def test_leading_dimensions_and_no_rows(device: torch.device) -> None:
    x, weight = random(2, 3, 5, device=device), random(8, 5, device=device)
    torch.testing.assert_close(linear_many_rows(x, weight), F.linear(x, weight))
    assert linear_many_rows(x[:0], weight, activation="swiglu").shape == (0, 3, 4)


def test_refuses_what_does_not_fit(device: torch.device) -> None:
    x, weight = random(2, 8, device=device), random(4, 8, device=device)
    int8 = Int8Weight(weight.to(torch.int8), random(4, device=device))
    int4 = Int4Weight(weight.to(torch.uint8), random(4, 1, device=device).half(), 16, 16)
    lora = StackedLora(random(1, 2, 8, device=device), random(1, 4, 2, device=device), x.new_ones(1, 2), None)
    for message, given in {
        "float64 (2, 8)": {"x": x.double()},
        "float16 (4, 8)": {"weight": weight.half()},
        "float32 (4, 7)": {"weight": weight[:, :7]},
        "strides (1, 4)": {"weight": random(8, 4, device=device).T},
        "float32 (3,)": {"bias": weight.new_ones(3)},
        "float16 (4, 1)": {"weight": int8._replace(scale=int8.scale.half())},
        "a weight of 16 inputs": {"weight": int4},
        "uint8 (4, 7)": {"weight": int4._replace(in_features=8, q=int4.q[:, :7])},
        "activation='relu'": {"activation": "relu"},
        "swiglu of 3 outputs": {"weight": weight[:3], "activation": "swiglu"},
        "float32 (2, 3)": {"residual": x[:, :3]},
        "float32 (1, 4, 3)": {"lora": lora._replace(b=random(1, 4, 3, device=device))},
        "int64 (2,)": {"lora": lora._replace(owner=torch.zeros(2, dtype=torch.int64, device=device))},
    }.items():
        with pytest.raises(ValueError, match=re.escape(message) + ".* came; wanted"):
            linear_many_rows(**{"x": x, "weight": weight, **given})
