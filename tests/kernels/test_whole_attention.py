"""Attention over whole sequences: own kernels against float64, and the libraries behind one call."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from functools import partial
from itertools import accumulate, pairwise
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from owl_fast.kernels import varlen_attention as varlen
from owl_fast.kernels.dense_attention import dense_attention_reference, dense_attention_triton
from owl_fast.kernels.varlen_attention import varlen_attention_reference, varlen_attention_triton
from tests.kernels.tensors import DTYPES, compare, random, strided

PACKS = {  # lengths, H, K, D
    "L2-H1-K1-D4": ((2,), 1, 1, 4),
    "L1-63-0-2-H2-K1-D24": ((1, 63, 0, 2), 2, 1, 24),
    "L65-130-H1-K1-D16": ((65, 130), 1, 1, 16),
    "L33-40-H4-K2-D128": ((33, 40), 4, 2, 128),
}


def packed(
    lengths: tuple[int, ...], heads: int, key_heads: int, width: int, dtype: torch.dtype, device: torch.device
) -> tuple[dict[str, Tensor], tuple[int, ...], Tensor]:
    """query, key and value inside NaN; their bounds on both sides."""
    bounds = (0, *accumulate(lengths))
    tensors = {
        name: strided(random(bounds[-1], h, width, dtype=dtype, device=device, seed=i)).requires_grad_()
        for i, (name, h) in enumerate((("query", heads), ("key", key_heads), ("value", key_heads)))
    }
    return tensors, bounds, torch.tensor(bounds, dtype=torch.int32, device=device)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("pack", PACKS.values(), ids=PACKS)
@pytest.mark.usefixtures("poisoned")
def test_packed_matches_float64(device: torch.device, pack: tuple[Any, ...], dtype: torch.dtype) -> None:
    tensors, bounds, starts = packed(*pack, dtype, device)
    compare(
        partial(varlen_attention_triton, bounds=bounds, starts=starts),
        partial(varlen_attention_reference, bounds=bounds),
        tensors,
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("width", [64, 128], ids=lambda width: f"D{width}")
def test_packed_matches_float64_over_many_tiles(device: torch.device, width: int, dtype: torch.dtype) -> None:
    tensors, bounds, starts = packed((127, 1, 257, 64, 129), 4, 2, width, dtype, device)
    compare(
        partial(varlen_attention_triton, bounds=bounds, starts=starts),
        partial(varlen_attention_reference, bounds=bounds),
        tensors,
    )


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize(
    ("rows", "keys", "width"),
    [(1, 2, 8), (65, 65, 64), (17, 129, 24)],
    ids=["L1-S2-D8", "L65-D64", "L17-S129-D24"],
)
@pytest.mark.usefixtures("poisoned")
def test_dense_matches_float64(
    device: torch.device, rows: int, keys: int, width: int, dtype: torch.dtype
) -> None:
    shapes = {"query": rows, "key": keys, "value": keys}
    tensors = {
        name: strided(random(2, n, 2, width, dtype=dtype, device=device, seed=i)).requires_grad_()
        for i, (name, n) in enumerate(shapes.items())
    }
    compare(dense_attention_triton, dense_attention_reference, tensors)


def test_dense_takes_the_vision_towers_views(device: torch.device) -> None:
    """Rows laid out [head][q | k | v][D], whose gradient comes back as one tensor."""
    fused = random(2, 9, 3, 3, 12, device=device).requires_grad_()
    compare(
        lambda fused: dense_attention_triton(*fused.unbind(3)),
        lambda fused: dense_attention_reference(*fused.unbind(3)),
        {"fused": fused},
    )


def test_a_sequence_does_not_depend_on_its_neighbours(device: torch.device) -> None:
    tensors, bounds, starts = packed((70, 5, 66), 2, 1, 16, torch.bfloat16, device)
    together = varlen_attention_triton(**tensors, bounds=bounds, starts=starts)
    for start, end in pairwise(bounds):
        alone = {name: x[start:end] for name, x in tensors.items()}
        own = torch.tensor((0, end - start), dtype=torch.int32, device=device)
        assert torch.equal(
            together[start:end], varlen_attention_triton(**alone, bounds=(0, end - start), starts=own)
        )


def test_nothing_to_attend(device: torch.device) -> None:
    tensors, bounds, starts = packed((), 2, 1, 16, torch.float32, device)
    assert varlen_attention_triton(**tensors, bounds=bounds, starts=starts).shape == (0, 2, 16)


def test_refuses_what_does_not_fit(device: torch.device) -> None:
    tensors, bounds, starts = packed((3, 4), 4, 2, 8, torch.float32, device)
    for changed, words in (
        ({"query": tensors["query"].double()}, "float64 (7, 4, 8)"),
        ({"key": tensors["key"][:6]}, "float32 (6, 2, 8)"),
        ({"key": tensors["query"][:, :3]}, "float32 (7, 3, 8)"),
        ({"value": tensors["value"].half()}, "float16 (7, 2, 8)"),
        ({"bounds": (0, 4, 3, 7)}, "bounds (0, 4, 3, 7)"),
        ({"bounds": (0, 3, 6)}, "bounds (0, 3, 6)"),
        ({"starts": starts.long()}, "int64 (3,)"),
        ({"starts": starts[:2]}, "int32 (2,)"),
    ):
        given: dict[str, Any] = tensors | {"bounds": bounds, "starts": starts} | changed
        with pytest.raises(ValueError, match=re.escape(words) + ".* came; wanted"):
            varlen_attention_triton(**given)
    query, key, value = (x[None] for x in tensors.values())
    for bad_key, words in ((key, "float32 (1, 7, 2, 8)"), (query[:, :0], "float32 (1, 0, 4, 8)")):
        with pytest.raises(ValueError, match=re.escape(words) + ".* came; wanted"):
            dense_attention_triton(query, bad_key, value)


# --- libraries ---


def of_2_10(
    query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int,
    is_causal: bool = False, return_aux: Any = None,
) -> dict[str, Any]:  # fmt: skip
    return locals()


def of_2_11(
    query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, *,
    return_aux: Any = None, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
) -> dict[str, Any]:  # fmt: skip
    return locals()


def of_2_12(
    query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, *,
    return_aux: Any = None, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False, seqused_k: Any = None, block_table: Any = None, num_splits: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    return locals()


def of_flash_attn(
    q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, max_seqlen_q: int, max_seqlen_k: int,
    dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0, alibi_slopes: Any = None,
    deterministic: bool = False, return_attn_probs: bool = False, block_table: Any = None,
) -> dict[str, Any]:  # fmt: skip
    return locals()


@pytest.fixture
def no_memory() -> Iterator[None]:
    varlen.flash_attention.cache_clear()
    yield
    varlen.flash_attention.cache_clear()


def said_by(attend: Any) -> dict[str, Any]:
    assert attend is not None
    return attend("q", "k", "v", "starts", 9)


def test_torchs_attention_by_any_of_its_signatures() -> None:
    old, middle, new = (said_by(varlen._by_torch(f, False)) for f in (of_2_10, of_2_11, of_2_12))
    assert old["is_causal"] is True
    assert middle["window_size"] == new["window_size"] == (-1, 0)
    assert (new["num_splits"], new["enable_gqa"]) == (1, False)
    for said in (old, middle, new):
        places = ("query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k")
        assert [said[name] for name in places] == ["q", "k", "v", "starts", "starts", 9, 9]


def test_grouped_queries_where_torch_has_them() -> None:
    assert said_by(varlen._by_torch(of_2_12, True))["enable_gqa"] is True
    assert varlen._by_torch(of_2_10, True) is None
    assert varlen._by_torch(of_2_11, True) is None


def test_the_installed_torch_takes_what_it_is_given() -> None:
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    assert "window_size" in known
    assert {"enable_gqa", "num_splits"} <= set(known) or torch.__version__ < "2.12"


@pytest.mark.usefixtures("no_memory")
def test_flash_attn_comes_first_and_is_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = of_flash_attn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    for gradients in (False, True):
        said = said_by(varlen.flash_attention(grouped=True, width=128, gradients=gradients))
        assert (said["q"], said["cu_seqlens_k"], said["max_seqlen_q"]) == ("q", "starts", 9)
        assert said["causal"] is said["deterministic"] is True
    assert varlen.flash_attention(grouped=False, width=20, gradients=False) is None


@pytest.mark.usefixtures("no_memory")
def test_torchs_attention_serves_inference_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)  # importing it fails
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", of_2_12)
    assert said_by(varlen.flash_attention(grouped=False, width=128, gradients=False))["num_splits"] == 1
    assert varlen.flash_attention(grouped=False, width=128, gradients=True) is None
    varlen.flash_attention.cache_clear()
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    assert varlen.flash_attention(grouped=False, width=128, gradients=False) is None


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_libraries_match_float64(dtype: torch.dtype) -> None:
    tensors, bounds, starts = packed((127, 1, 300), 4, 4, 64, dtype, torch.device("cuda"))
    given = {name: x.detach() for name, x in tensors.items()}
    compare(
        partial(varlen.varlen_attention_gpu, bounds=bounds, starts=starts),
        partial(varlen_attention_reference, bounds=bounds),
        given,
    )
