"""Cross-attention by Triton: values, gradients and dropout against float64 and the reference."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
from torch import Tensor

from owl_fast.kernels.cross_attention import (
    cross_attention_reference,
    cross_attention_triton,
    launch_spec,
)
from owl_fast.kernels.dropout import draw_seed
from owl_fast.kernels.launch import jit, launch, tl
from tests.kernels.tensors import DTYPES, compare, random, strided

SHAPES = {  # N, Q, P, H, D
    "N1-Q1-P1-H1-D4": (1, 1, 1, 1, 4),
    "N2-Q5-P17-H3-D24": (2, 5, 17, 3, 24),
    "N1-Q33-P66-H1-D64": (1, 33, 66, 1, 64),
    "N1-Q3-P65-H2-D128": (1, 3, 65, 2, 128),
}


def inputs(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, extra: bool, gradients: bool = True
) -> dict[str, Tensor]:
    """Views inside NaN, as are those of fused linear layers."""
    pictures, queries, rows, heads, width = shape
    shapes = {
        "query": (pictures, queries, heads, width),
        "query_key_value": (pictures, queries, 2, heads, width),
        "image_key_value": (pictures, rows, 2, heads, width),
    }
    if extra:
        shapes["extra_key_value"] = (2, heads, width)
    return {
        name: strided(random(*shape, dtype=dtype, device=device, seed=i)).requires_grad_(gradients)
        for i, (name, shape) in enumerate(shapes.items())
    }


@pytest.mark.parametrize("extra", [False, True], ids=["plain", "extra"])
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.usefixtures("poisoned")
def test_matches_float64(
    device: torch.device, shape: tuple[int, ...], dtype: torch.dtype, extra: bool
) -> None:
    compare(cross_attention_triton, cross_attention_reference, inputs(shape, dtype, device, extra))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(("queries", "rows"), [(64, 257), (31, 32), (128, 255)], ids=str)
def test_matches_float64_at_full_width(
    device: torch.device, queries: int, rows: int, dtype: torch.dtype
) -> None:
    given = inputs((2, queries, rows, 2, 64), dtype, device, extra=True)
    compare(cross_attention_triton, cross_attention_reference, given)


def test_heads_and_rows_of_any_stride(device: torch.device) -> None:
    """Keys and values of one layer of several, side by side in one tensor."""
    given = inputs((2, 5, 17, 2, 8), torch.float32, device, extra=False, gradients=False)
    stacked = random(2, 17, 3, 2, 2, 8, device=device)
    query = random(2, 2, 5, 8, device=device).transpose(1, 2)
    for layer in range(3):
        given |= {"query": query, "image_key_value": stacked[:, :, layer]}
        ours, theirs = cross_attention_triton(**given), cross_attention_reference(**given)
        assert (ours - theirs).abs().max() < 2e-6
        assert ours.is_contiguous()


def test_a_picture_does_not_depend_on_the_others(device: torch.device) -> None:
    given = inputs((3, 5, 17, 2, 16), torch.bfloat16, device, extra=False, gradients=False)
    together = cross_attention_triton(**given)
    for n in range(3):
        assert torch.equal(
            together[n], cross_attention_triton(**{k: x[n : n + 1] for k, x in given.items()})[0]
        )


def test_no_pictures(device: torch.device) -> None:
    given = inputs((0, 5, 17, 2, 16), torch.float32, device, extra=True)
    assert cross_attention_triton(**given).shape == (0, 5, 2, 16)


def test_repeated_gradients_are_bit_equal(device: torch.device) -> None:
    given = inputs((2, 33, 40, 2, 16), torch.float16, device, extra=True)

    def gradients() -> list[Tensor]:
        torch.manual_seed(3)
        y = cross_attention_triton(**given, dropout=0.25)
        return [y, *torch.autograd.grad(y, tuple(given.values()), torch.ones_like(y))]

    assert all(torch.equal(a, b) for a, b in zip(gradients(), gradients(), strict=True))


# --- dropout ---


@jit
def _kept_kernel(kept, seed, drop, count, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(kept + places, tl.rand(seed, places) >= drop, mask=places < count)


def kept(shape: tuple[int, int, int, int], seed: int, drop: float, device: torch.device) -> Tensor:
    """(N, H, Q, keys) bool: the weights of these places that stay, numbered row after row."""
    mask = torch.empty(shape, dtype=torch.bool, device=device)
    launch(_kept_kernel, (-(-mask.numel() // 4096),), mask, seed, drop, mask.numel(), BLOCK=4096)
    return mask


def masked(
    query: Tensor,
    query_key_value: Tensor,
    image_key_value: Tensor,
    extra_key_value: Tensor,
    mask: Tensor,
    drop: float,
) -> Tensor:
    """Attention in plain steps with the given weights dropped."""
    last = extra_key_value.expand(len(query), 1, -1, -1, -1)
    key, value = torch.cat((query_key_value, image_key_value, last), 1).unbind(2)
    scores = torch.einsum("nqhd,nkhd->nhqk", query, key) / query.shape[-1] ** 0.5
    weights = scores.softmax(-1) * mask.to(scores.dtype) / (1 - drop)
    return torch.einsum("nhqk,nkhd->nqhd", weights, value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.usefixtures("poisoned")
def test_dropout_is_a_mask_of_places(device: torch.device, dtype: torch.dtype) -> None:
    shape, drop = (2, 35, 70, 2, 16), 0.3
    given = inputs(shape, dtype, device, extra=True)
    torch.manual_seed(11)
    mask = kept((2, 2, 35, 35 + 70 + 1), draw_seed(), drop, device)

    def ours(**tensors: Tensor) -> Tensor:
        torch.manual_seed(11)
        return cross_attention_triton(**tensors, dropout=drop)

    compare(ours, partial(masked, mask=mask, drop=drop), given)


def test_dropout_drops_as_often_as_asked(device: torch.device) -> None:
    torch.manual_seed(0)
    masks = [kept((1, 3, 64, 321), draw_seed(), drop, device) for drop in (0.1, 0.1, 0.5)]
    for mask, drop in zip(masks, (0.1, 0.1, 0.5), strict=True):
        rate = 1 - mask.float().mean().item()
        deviation = (drop * (1 - drop) / mask.numel()) ** 0.5
        assert abs(rate - drop) < 5 * deviation
        for axis in (1, 2, 3):  # no head, row or key is dropped as a whole
            assert mask.float().mean(dim=[i for i in range(4) if i != axis]).std() < 0.05
    both = (masks[0] == masks[1]).float().mean().item()
    assert abs(both - (0.9**2 + 0.1**2)) < 0.01  # another seed, another mask


def test_seeds_come_from_the_cpu_generator_and_compile_once() -> None:
    torch.manual_seed(5)
    seeds = [draw_seed() for _ in range(100)]
    torch.manual_seed(5)
    assert seeds == [draw_seed() for _ in range(100)]
    assert len(set(seeds)) == 100
    assert all(seed % 2 and 1 << 32 < seed < 1 << 63 for seed in seeds)


# --- what is refused ---


def test_refuses_what_does_not_fit(device: torch.device) -> None:
    given = inputs((2, 5, 17, 2, 8), torch.float32, device, extra=True, gradients=False)
    for changed, words in (
        ({"query": given["query"].double()}, "float64 (2, 5, 2, 8)"),
        ({"query_key_value": given["query_key_value"][:, :4]}, "float32 (2, 4, 2, 2, 8)"),
        ({"image_key_value": given["image_key_value"].half()}, "float16 (2, 17, 2, 2, 8)"),
        ({"image_key_value": given["image_key_value"].transpose(3, 4)}, "float32 (2, 17, 2, 8, 2)"),
        ({"extra_key_value": given["extra_key_value"][0]}, "float32 (2, 8)"),
        ({"query": random(2, 5, 2, 16, device=device)[..., ::2]}, "float32 (2, 5, 2, 8) with strides"),
    ):
        with pytest.raises(ValueError, match=re.escape(words) + ".* came; wanted"):
            cross_attention_triton(**(given | changed))
    with pytest.raises(ValueError, match=r"dropout 1.0 came; wanted a probability below 1"):
        cross_attention_triton(**given, dropout=1.0)


def test_autocast_decides_the_dtype(device: torch.device) -> None:
    """As torch's attention does: trained float32 weights beside bfloat16 activations."""
    given = inputs((1, 3, 5, 1, 8), torch.float32, device, extra=True)
    with torch.autocast(device.type, torch.bfloat16):
        y = cross_attention_triton(**given)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert given["extra_key_value"].grad.dtype == torch.float32


def test_tiles_of_narrow_heads_are_those_of_64() -> None:
    for capability in (80, 86, 89, 90, 100, 120):
        for dtype in (torch.bfloat16, torch.float16):
            assert launch_spec(8, dtype, capability) == launch_spec(64, dtype, capability)
