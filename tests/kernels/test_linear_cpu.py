"""Linear layers of inference on the CPU: each instruction set, with all that is fused, against float64."""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from owl_fast import native, ops
from owl_fast.kernels.linear_cpu import linear_cpu, linear_cpu_takes, paths
from owl_fast.kernels.lora_linear import fused_linear_reference
from owl_fast.kernels.quantized_linear import pack, quantized_linear_reference
from owl_fast.kernels.weights import StackedLora, TiledWeight, dequantize
from tests.kernels.tensors import CPU_DTYPES, quantized
from tests.kernels.tensors import random as random_on
from tests.tolerances import assert_as_good_as_torch

random = partial(random_on, device=torch.device("cpu"))
FORMS = ("dense", "int8", "int4-g32")
EPS = 1e-5
SHAPES = {  # rows, outputs, inputs
    "M1-N16-K64": (1, 16, 64),
    "M2-N2-K1": (2, 2, 1),
    "M5-N50-K33": (5, 50, 33),
    "M13-N34-K2077": (13, 34, 2077),
    "M64-N18-K130": (64, 18, 130),
}


class Layer:
    """Inputs of a linear layer with everything that can be there."""

    def __init__(
        self, rows: int, outputs: int, inputs: int, dtype: torch.dtype, form: str = "dense", rank: int = 5
    ) -> None:
        make = partial(random, dtype=dtype)
        self.form, self.dtype = form, dtype
        self.x, self.gain, self.bias = make(rows, inputs), make(inputs, seed=1), make(outputs, seed=2)
        if form == "dense":
            self.weight: ops.Weight = make(outputs, inputs, seed=3, scale=max(inputs, 1) ** -0.5)
        else:
            self.weight = quantized(form, outputs, inputs, torch.device("cpu"))
        self.wide, self.half = make(rows, outputs, seed=4), make(rows, outputs // 2, seed=4)
        generator = torch.Generator().manual_seed(5)
        owner = torch.randint(-1, 3, (rows,), generator=generator, dtype=torch.int32)
        owner[rows // 2 :] = owner[rows // 2 :].sort().values  # some stand beside their like
        a, b = make(3, rank, inputs, seed=6, scale=max(inputs, 1) ** -0.5), make(3, outputs, rank, seed=7)
        self.lora = StackedLora(a, b, random(3, rank, seed=8), owner)

    def run(
        self,
        library: ctypes.CDLL,
        activation: str | None = None,
        *,
        rows: slice = slice(None),
        bare: bool = False,
        pool: int | None = None,
        path: int = 0,
    ) -> Tensor:
        """bare: nothing around the product."""
        weight = self.weight if isinstance(self.weight, Tensor) else pack(library, self.weight)
        call = partial(linear_cpu, library, self.x[rows], weight, pool=pool, path=path)
        if bare:
            return call(activation=activation)
        assert self.lora.owner is not None
        lora = self.lora._replace(owner=self.lora.owner[rows])
        residual = (self.half if activation == "swiglu" else self.wide)[rows]
        return call(self.bias, lora, norm=(self.gain, EPS), activation=activation, residual=residual)

    def reference(self, activation: str | None, dtype: torch.dtype) -> Tensor:
        """In plain torch; the activations of a quantized weight are rounded as it demands."""
        x, gain, bias, a, b, residual = (
            t.to(dtype)
            for t in (
                self.x,
                self.gain,
                self.bias,
                self.lora.a,
                self.lora.b,
                self.half if activation == "swiglu" else self.wide,
            )
        )
        lora = StackedLora(a, b, self.lora.scale.to(dtype), self.lora.owner)
        args = {"activation": activation, "residual": residual}
        if isinstance(self.weight, Tensor):
            return fused_linear_reference(x, self.weight.to(dtype), bias, lora, norm=(gain, EPS), **args)
        normed = ops.rms_norm(self.x, self.gain, EPS).to(dtype)
        product = quantized_linear_reference(normed, self.weight)
        nothing = torch.zeros(len(bias), x.shape[1], dtype=dtype)
        update = fused_linear_reference(normed, nothing, bias, lora)
        identity = torch.eye(len(bias), dtype=dtype)
        return fused_linear_reference(product + update, identity, **args)


@pytest.mark.parametrize("dtype", CPU_DTYPES.values(), ids=CPU_DTYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("activation", [None, "swiglu", "quick_gelu"], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_as_good_as_torch(
    cpu_library: ctypes.CDLL,
    cpu_path: int,
    form: str,
    activation: str | None,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
) -> None:
    layer = Layer(*shape, dtype, form)
    exact, torchs = layer.reference(activation, torch.float64), layer.reference(activation, dtype)
    assert_as_good_as_torch(layer.run(cpu_library, activation, path=cpu_path), torchs, exact)


@pytest.mark.parametrize("dtype", CPU_DTYPES.values(), ids=CPU_DTYPES)
def test_a_dense_product_is_as_good_as_torchs(
    cpu_library: ctypes.CDLL, cpu_path: int, dtype: torch.dtype
) -> None:
    """Alone, in parts of the inputs, and where parts end."""
    for rows, inputs in ((1, 4096), (40, 1024), (40, 1025), (70, 2047), (7, 3100), (0, 8), (3, 0)):
        layer = Layer(rows, 21, inputs, dtype)
        assert isinstance(layer.weight, Tensor)
        exact = layer.x.double() @ layer.weight.double().T
        y = layer.run(cpu_library, bare=True, path=cpu_path)
        assert_as_good_as_torch(y, torch.nn.functional.linear(layer.x, layer.weight), exact)


@pytest.mark.parametrize("dtype", CPU_DTYPES.values(), ids=CPU_DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_bits_do_not_depend_on_rows_or_threads(
    cpu_library: ctypes.CDLL, cpu_path: int, form: str, dtype: torch.dtype
) -> None:
    """Nor on neighbours: several adapters, and none, side by side."""
    layer = Layer(64, 50, 1300, dtype, form, rank=7)
    pools = [native.Pool(cpu_library, threads) for threads in (1, 2, 4)]
    try:
        for activation in (None, "swiglu"):
            run = partial(layer.run, cpu_library, activation, path=cpu_path)
            alone = torch.cat([run(rows=slice(m, m + 1)) for m in range(64)])
            for count in (*range(1, 15), 31, 47, 63, 64):
                first = (64 - count) // 2
                rows = slice(first, first + count)
                found = run(rows=rows, pool=pools[count % 3].handle)
                assert torch.equal(found, alone[rows]), (activation, count, pools[count % 3].threads)
    finally:
        for pool in pools:
            pool.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=("fp32", "bf16"))
@pytest.mark.parametrize("form", FORMS)
def test_what_fills_up_an_adapter_is_not_read(
    cpu_library: ctypes.CDLL, cpu_path: int, form: str, dtype: torch.dtype
) -> None:
    """The bits of an adapter are those it has beside no larger one; without any rank, of no adapter."""
    layer = Layer(13, 50, 130, dtype, form, rank=7)
    plain = layer.run(cpu_library, "swiglu", path=cpu_path)
    a, b, scale, owner = layer.lora
    more, ranks = 36, slice(0, 7)
    wider = StackedLora(
        a.new_full((5, more, 130), torch.nan),
        b.new_full((5, 50, more), torch.nan),
        scale.new_zeros(5, more),
        owner,
    )
    wider.a[:3, ranks], wider.b[:3, :, ranks], wider.scale[:3, ranks] = a, b, scale
    layer.lora = wider
    assert torch.equal(layer.run(cpu_library, "swiglu", path=cpu_path), plain)
    layer.lora = wider._replace(owner=torch.full_like(owner, 4))  # type: ignore[arg-type]
    nobodys = layer.run(cpu_library, "swiglu", path=cpu_path)
    layer.lora = layer.lora._replace(owner=torch.full_like(owner, -1))  # type: ignore[arg-type]
    assert torch.equal(nobodys, layer.run(cpu_library, "swiglu", path=cpu_path))


@pytest.mark.parametrize("form", FORMS[1:])
def test_what_is_fused_is_what_it_would_be_alone(cpu_library: ctypes.CDLL, cpu_path: int, form: str) -> None:
    """Norm, bias and residual: the bits of an fp32 operation of their own."""
    layer = Layer(9, 34, 130, torch.float32, form)
    assert not isinstance(layer.weight, Tensor)
    weight, run = pack(cpu_library, layer.weight), partial(linear_cpu, cpu_library, path=cpu_path)
    normed = ops.rms_norm(layer.x, layer.gain, EPS)
    expected = layer.wide + (run(normed, weight) + layer.bias)
    found = run(layer.x, weight, layer.bias, norm=(layer.gain, EPS), residual=layer.wide)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_nothing_hides_what_is_not_finite(
    cpu_library: ctypes.CDLL, cpu_path: int, form: str, value: float
) -> None:
    """In x: its row, whole, for with a norm all of it is NaN. In the residual: its place."""
    layer = Layer(7, 20, 70, torch.bfloat16, form)
    clean = layer.run(cpu_library, "swiglu", path=cpu_path)
    layer.x[2, 69] = value
    layer.half[4, 3] = value
    found = layer.run(cpu_library, "swiglu", path=cpu_path)
    assert bool(found[2].isnan().all())
    assert found[4, 3].isnan() if math.isnan(value) else found[4, 3] == value
    found[2], found[4, 3] = clean[2], clean[4, 3]
    assert torch.equal(found, clean)


def test_activations_of_every_size(cpu_library: ctypes.CDLL) -> None:
    """As torch's, where the exponential overflows and where nothing is left of it, too."""
    sizes = torch.cat([torch.logspace(-30, 30, 400), torch.linspace(80, 92, 100), torch.tensor([math.inf])])
    z = torch.cat([-sizes.flip(0), torch.zeros(1), sizes, torch.tensor([math.nan])])
    x, rtol = torch.zeros(1, 1), 90 * 2.0**-24  # what rounding 1.702 z, 90 at most, makes of its exponential
    y = linear_cpu(cpu_library, x, torch.zeros(len(z), 1), z, activation="quick_gelu")[0]
    exact = z.double() * torch.sigmoid(1.702 * z.double())
    torch.testing.assert_close(y.double(), exact, rtol=rtol, atol=2e-36, equal_nan=True)
    ones = torch.cat([z, torch.ones_like(z)])
    y = linear_cpu(cpu_library, x, torch.zeros(len(ones), 1), ones, activation="swiglu")[0]
    exact = torch.nn.functional.silu(z.double())
    torch.testing.assert_close(y.double(), exact, rtol=rtol, atol=2e-36, equal_nan=True)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 40),
    outputs=st.integers(0, 25).map(lambda n: 2 * n),
    inputs=st.integers(1, 300),
    rank=st.integers(0, 70),
    form=st.sampled_from(FORMS),
    dtype=st.sampled_from(list(CPU_DTYPES.values())),
    activation=st.sampled_from([None, "swiglu", "quick_gelu"]),
)
def test_any_shape(
    cpu_library: ctypes.CDLL,
    rows: int,
    outputs: int,
    inputs: int,
    rank: int,
    form: str,
    dtype: torch.dtype,
    activation: str | None,
) -> None:
    layer = Layer(rows, outputs, inputs, dtype, form, rank)
    exact = layer.reference(activation, torch.float64)
    size = 1 + exact.abs().amax().item() if exact.numel() else 1
    for path in range(len(paths(cpu_library))):
        y = layer.run(cpu_library, activation, path=path)
        # bf16: the normed x is rounded once, every result once; a product's sums have random signs
        torch.testing.assert_close(
            y.double(), exact, rtol=0, atol=size * (2.0**-5 if dtype == torch.bfloat16 else 2.0**-17)
        )


@pytest.mark.parametrize("form", FORMS)
def test_stays_inside_its_memory(
    cpu_library: ctypes.CDLL, cpu_path: int, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fresh memory is full of NaN and has a margin that nothing touches."""
    made: list[Tensor] = []
    new_empty = Tensor.new_empty

    def guarded(self: Tensor, size: object, dtype: torch.dtype | None = None) -> Tensor:
        shape, dtype = torch.Size((size,) if isinstance(size, int) else size), dtype or self.dtype  # type: ignore[arg-type]
        count = shape.numel() * dtype.itemsize
        raw = new_empty(self, ((count + 63) // 64 * 64 + 128,), dtype=torch.uint8).fill_(255)
        made.append(raw[64 + count :])
        made.append(raw[:64])
        return raw[64 : 64 + count].view(dtype).view(shape)

    layer = Layer(14, 22, 77, torch.bfloat16, form)
    expected = layer.run(cpu_library, "swiglu", path=cpu_path)
    monkeypatch.setattr(Tensor, "new_empty", guarded)
    found = layer.run(cpu_library, "swiglu", path=cpu_path)
    assert torch.equal(found, expected)
    assert made
    assert all(bool((margin == 255).all()) for margin in made)


def test_weights_are_read_where_they_are(cpu_library: ctypes.CDLL, tmp_path: Path) -> None:
    """From a mapped file that nobody may write to, at an odd place."""
    layer = Layer(3, 17, 65, torch.bfloat16)
    assert isinstance(layer.weight, Tensor)
    path = tmp_path / "weights"
    path.write_bytes(b"ab" + layer.weight.view(torch.uint8).numpy().tobytes())
    mapped = torch.from_file(str(path), size=1 + layer.weight.numel(), dtype=torch.bfloat16)[1:]
    found = linear_cpu(cpu_library, layer.x, mapped.view(17, 65))
    assert torch.equal(found, layer.run(cpu_library, bare=True))


def test_what_does_not_fit_is_refused(cpu_library: ctypes.CDLL) -> None:
    x, weight, lora = torch.zeros(2, 8), torch.zeros(6, 8), Layer(2, 6, 8, torch.float32).lora
    run = partial(linear_cpu, cpu_library)
    for call, message in (
        (partial(run, torch.zeros(2, 7), weight), r"wanted fp32 or bf16 \(..., 8\)"),
        (partial(run, x.bfloat16(), weight), r"wanted a contiguous torch.bfloat16 \(6, 8\)"),
        (partial(run, x, torch.zeros(8, 6).T), r"wanted a contiguous torch.float32 \(6, 8\)"),
        (partial(run, x, weight, torch.zeros(5)), r"wanted a contiguous torch.float32 \(6,\)"),
        (partial(run, x, weight, norm=(torch.zeros(8).double(), 0.1)), r"wanted a contiguous torch.float32"),
        (partial(run, x, weight, residual=torch.zeros(2, 3)), r"wanted a contiguous torch.float32 \(2, 6\)"),
        (partial(run, x, torch.zeros(5, 8), activation="swiglu"), "5 rows came; wanted gate and up"),
        (partial(run, x, weight, lora=lora._replace(b=lora.b[:, 1:])), "wanted a contiguous torch.float32"),
        (partial(run, x, weight, lora=lora._replace(owner=torch.zeros(2).long())), "contiguous torch.int32"),
        (partial(run, x, weight, path=9), r"path 9 came; wanted one of"),
        (partial(run, x, TiledWeight(torch.zeros(7, dtype=torch.uint8), 6, 8, 0)), "the bytes of a tiled"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_ops_run_it_where_they_can(cpu_library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiled and dense weights, with updates; not with a gradient, a dropout, autocast or other types."""
    calls: list[Tensor] = []

    def counted(library: ctypes.CDLL, x: Tensor, *args: object, **named: object) -> Tensor:
        calls.append(x)
        return linear_cpu(library, x, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(ops, "linear_cpu", counted)
    layer = Layer(5, 24, 64, torch.float32, "int4-g32")
    assert not isinstance(layer.weight, Tensor)
    tiled, dense = ops.tiled(layer.weight), dequantize(layer.weight, torch.float32)
    assert tiled is not None
    update = ops.LoraUpdate(3, 9, random(2, 64, seed=9), random(6, 2, seed=10), 0.5, 0.0)
    normed = ops.rms_norm(layer.x, layer.gain, EPS)
    for weight, product in (
        (tiled, quantized_linear_reference(normed, layer.weight)),
        (dense, normed @ dense.T),
    ):
        calls.clear()
        plain = product + layer.bias
        plain[:, 3:9] += 0.5 * normed @ update.a.T @ update.b.T
        expected = layer.half + ops.swiglu(plain)
        for lora in ((update,), ops.stack_updates((update,), 24, torch.float32)):
            run = partial(ops.lora_linear, norm=(layer.gain, EPS), activation="swiglu", residual=layer.half)
            y = run(layer.x, weight, layer.bias, lora)
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
        assert len(calls) == 2
    calls.clear()
    ops.lora_linear(layer.x, dense, layer.bias, (update._replace(dropout=0.5),))
    ops.lora_linear(layer.x, dense.requires_grad_(), layer.bias)
    ops.lora_linear(layer.x.double(), dense.detach().double())
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.lora_linear(layer.x, dense.detach()).dtype == torch.bfloat16
    assert not calls
    assert not linear_cpu_takes(layer.x, dense.detach(), layer.bias.double())


ARM = "aarch64-linux-gnu"
DRIVERS = {
    "memory": (["-DCMAKE_CXX_FLAGS=-g1 -fsanitize=address,undefined -fno-sanitize-recover=all"], []),
    "races": (["-DCMAKE_CXX_FLAGS=-g1 -fsanitize=thread"], []),
    "aarch64": (
        [f"-DCMAKE_SYSTEM_{name}" for name in ("NAME=Linux", "PROCESSOR=aarch64")]
        + [f"-DCMAKE_CXX_COMPILER={ARM}-g++"],
        ["qemu-aarch64", "-L", f"/usr/{ARM}"],
    ),
}
RESULT = "cebaae64b032eae7"  # what the driver makes of all its results, on any machine


@pytest.mark.slow
@pytest.mark.parametrize("kind", DRIVERS)
def test_the_driver_runs_clean(kind: str, tmp_path: Path) -> None:
    """In a program of its own, tests/native/driver.cpp: sanitizers and emulators do not fit into Python."""
    options, emulator = DRIVERS[kind]
    needed = ["cmake", f"{ARM}-g++", "qemu-aarch64"] if emulator else ["cmake"]
    missing = [tool for tool in needed if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    root = Path(__file__).resolve().parents[2]
    for command in (
        ["cmake", "-S", str(root), "-B", str(tmp_path), "-DOWL_CPU_DRIVER=ON", *options],
        ["cmake", "--build", str(tmp_path), "--parallel", "2"],
        [*emulator, str(tmp_path / "owl_cpu_driver")],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    result, found = done.stdout.split()
    assert result == RESULT
    assert kind != "aarch64" or "neon_dotprod" in found
