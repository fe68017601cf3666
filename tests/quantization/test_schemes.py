"""Packing: the canonical form, the error against plain rounding, the same bytes whatever surrounds a row."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from owl_fast import ops
from owl_fast.kernels.quantized_linear import fits_a_byte
from owl_fast.quantization import int4, int8
from owl_fast.quantization.ordered_sum import ordered_sum
from owl_fast.quantization.whole import packer

WIDTHS = [1, 2, 31, 47, 48, 80, 192, 512]
KINDS = [("int8", 0), ("int4", 16), ("int4", 32), ("int4", 128)]


def weight(rows: int, width: int, tail: float = 0.0, seed: int = 0) -> Tensor:
    """Normal numbers, or with a heavy tail."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(rows, width, generator=generator)
    return w / (1 - torch.rand(rows, width, generator=generator)) ** tail * 0.02


def error(packed: ops.Int8Weight | ops.Int4Weight, w: Tensor) -> Tensor:
    """Sum of squares of each row, in float64."""
    return (ops.dequantize(packed, torch.float64) - w.double()).square().sum(-1)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("scheme", "group"), KINDS, ids=str)
def test_shapes_and_dtypes_are_canonical(scheme: str, group: int, width: int) -> None:
    packed = packer(scheme, group)(weight(5, width).bfloat16())
    empty = int8.empty(5, width) if scheme == "int8" else int4.empty(5, width, group)
    assert packed.shape == empty.shape == (5, width)
    for name in ("q", "scale"):
        ours, wanted = getattr(packed, name), getattr(empty, name)
        assert (ours.shape, ours.dtype, ours.is_contiguous()) == (wanted.shape, wanted.dtype, True)
    if isinstance(packed, ops.Int4Weight):
        assert (packed.in_features, packed.group) == (width, group)


@pytest.mark.parametrize("tail", [0.0, 0.4, 0.8])
@pytest.mark.parametrize("width", WIDTHS)
def test_int8_has_no_row_worse_than_rounded_plainly(width: int, tail: float) -> None:
    w = weight(40, width, tail)
    ours, plain = (error(packer("int8", 0, plain=p)(w), w) for p in (False, True))
    assert (ours <= plain * (1 + 1e-6)).all()


@pytest.mark.parametrize("tail", [0.0, 0.4])
@pytest.mark.parametrize("width", [512, 4096])
@pytest.mark.parametrize("group", [32, 128])
def test_int4_is_better_than_rounded_plainly(group: int, width: int, tail: float) -> None:
    """Though scales are short, which costs single rows something, and weights of a tail of 0.8 all."""
    w = weight(40, width, tail)
    ours, plain = (error(packer("int4", group, plain=p)(w), w) for p in (False, True))
    assert ours.sum() < 0.985 * plain.sum()
    assert (ours <= 1.25 * plain).all()


@pytest.mark.parametrize("size", [1e-3, 1.0, 1000.0])
def test_scales_of_int4_fit_a_byte(size: float) -> None:
    """Except those below 2^-14, and from 2 on, which keep the precision of fp16."""
    scale = packer("int4", 32)(weight(40, 320) * size).scale
    assert fits_a_byte(scale) == (size == 1.0)


@pytest.mark.parametrize(("scheme", "group"), KINDS, ids=str)
def test_every_weight_is_off_by_at_most_half_a_step(scheme: str, group: int) -> None:
    """Of plain rounding, which clips nothing but +8 of a group whose largest weight is -8."""
    w = weight(30, 192)
    packed = packer(scheme, group, plain=True)(w)
    off = (ops.dequantize(packed, torch.float32) - w).abs()
    scale = packed.scale.float().abs()
    step = scale[:, None] if scheme == "int8" else scale.repeat_interleave(group, 1)[:, :192]
    limit = step * 0.501
    if scheme == "int4":  # a weight close to the largest, of the other sign, is cut off at 7
        limit = torch.where(w.abs() > 7 * step, step, limit)
    assert (off <= limit + 1e-3 * step).all()


def test_numbers_that_int4_can_hold_are_held_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-8, 8, (20, 96), generator=generator).float()
    codes[:, ::32] = -8
    w = codes * torch.tensor([0.5, -0.25, 0.0625]).repeat_interleave(32)
    assert torch.equal(ops.dequantize(int4.pack(w, 32), torch.float32), w)


def test_numbers_that_int8_can_hold_are_held_exactly() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-127, 128, (20, 96), generator=generator).float()
    codes[:, 0] = 127
    w = codes * 0.25
    assert torch.equal(ops.dequantize(int8.pack(w), torch.float32), w)


@pytest.mark.parametrize(("scheme", "group"), KINDS, ids=str)
def test_zeros_and_the_smallest_numbers(scheme: str, group: int) -> None:
    w = torch.zeros(4, 70)
    w[1] = 1e-30
    w[2, 3] = -1e-7
    w[3, 5] = 3e4
    packed = packer(scheme, group)(w)
    back = ops.dequantize(packed, torch.float32)
    assert packed.scale.isfinite().all()
    assert (back[0] == 0).all()
    assert (back - w).abs().max() <= 3e4 / 250
    assert back[3, 5] > 2.9e4


@pytest.mark.parametrize(("scheme", "group"), KINDS, ids=str)
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 9), width=st.integers(1, 140))
def test_a_row_does_not_depend_on_its_neighbours(
    scheme: str, group: int, seed: int, rows: int, width: int
) -> None:
    w, pack = weight(rows, width, 0.3, seed), packer(scheme, group)
    whole, first = pack(w), pack(w[:1].clone())
    assert torch.equal(whole.q[:1], first.q)
    assert torch.equal(whole.scale[:1], first.scale)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 64, 100, 192])
def test_ordered_sums_are_those_of_a_plain_loop(length: int) -> None:
    x = weight(length, 3)
    sums = []
    for column in x.T:
        row = list(column)
        while len(row) > 1:
            half = len(row) // 2
            added = [a + b for a, b in zip(row[:half], row[half : 2 * half], strict=True)]
            if len(row) % 2:
                added[0] = added[0] + row[-1]
            row = added
        sums.append(row[0])
    assert torch.equal(ordered_sum(x.clone()), torch.stack(sums))
    torch.testing.assert_close(ordered_sum(x), x.sum(0))


@pytest.mark.parametrize(
    ("scheme", "group", "digest"), [("int8", 0, "2d2f9b6fae688b4b"), ("int4", 32, "17c5fc7cbd2eab2e")]
)
def test_the_bytes_are_the_same_everywhere(scheme: str, group: int, digest: str) -> None:
    """Of weights made without a random generator; on another processor or a GPU these are the bytes too."""
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        n = torch.arange(64 * 200, dtype=torch.int64, device=device)
        w = ((n * 2654435761 % 1000003) - 500001).float().view(64, 200) / 2**23
        w = w * w.abs().clamp(min=2**-8)
        packed = packer(scheme, group)(w)
        data = b"".join(part.cpu().numpy().tobytes() for part in (packed.q, packed.scale))
        assert hashlib.sha256(data).hexdigest()[:16] == digest
