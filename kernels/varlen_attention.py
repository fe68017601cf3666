"""Causal self-attention over packed sequences: softmax(Q K^T / sqrt(D)) V within each sequence.

T tokens, B sequences, H query heads, K key heads (H a multiple of K: grouped queries), D head width.
"""

from __future__ import annotations

import ctypes
import functools
import inspect
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from owl_fast.kernels.attention_cpu import function, heads_fit, put_new, query_fits, task_of
from owl_fast.kernels.autocast import as_autocast
from owl_fast.kernels.flash import check_heads
from owl_fast.kernels.launch import check
from owl_fast.kernels.whole_attention import whole_attention

Packed = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]  # query, key, value, starts, longest


def varlen_attention_reference(query: Tensor, key: Tensor, value: Tensor, bounds: Sequence[int]) -> Tensor:
    """query (T, H, D), key and value (T, K, D) -> (T, H, D).

    bounds: host-side sequence boundaries, 0 = bounds[0] <= ... <= bounds[-1] = T. A row sees its own
    sequence up to itself and nothing else.
    """
    lengths = [end - start for start, end in pairwise(bounds)]
    outputs = []
    # split, not slices: the gradient of a slice is a tensor as large as the whole pack, once per sequence.
    for parts in zip(*(torch.split(x, lengths) for x in (query, key, value)), strict=True):
        q, k, v = (part.transpose(0, 1)[None] for part in parts)  # (1, heads, L, D)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        outputs.append(out[0].transpose(0, 1))
    return torch.cat(outputs) if outputs else query


def varlen_attention_triton(
    query: Tensor, key: Tensor, value: Tensor, bounds: Sequence[int], starts: Tensor
) -> Tensor:
    """As varlen_attention_reference, on a GPU, with gradients; any strides, but channels side by side.

    starts: bounds on the device, (B + 1) int32.
    """
    query, key, value = as_autocast(query, key, value)
    _check(query, key, value, bounds, starts)
    return whole_attention(query, key, value, starts, _longest(bounds), causal=True)


def varlen_attention_gpu(
    query: Tensor, key: Tensor, value: Tensor, bounds: Sequence[int], starts: Tensor
) -> Tensor:
    """The same by a library in half precision on CUDA, where one gives bit-equal results; else by Triton.

    In float32 Triton as well: exact products, and one launch for all sequences.
    """
    query, key, value = as_autocast(query, key, value)
    _check(query, key, value, bounds, starts)
    if query.is_cuda and query.dtype != torch.float32 and len(query):
        attend = flash_attention(
            query.shape[1] != key.shape[1], query.shape[2], _needs_grad(query, key, value)
        )
        if attend is not None:
            return attend(query, key, value, starts, _longest(bounds))
    return whole_attention(query, key, value, starts, _longest(bounds), causal=True)


@functools.cache
def flash_attention(grouped: bool, width: int, gradients: bool) -> Packed | None:
    """flash-attn if it is installed, else torch's own copy of it; None if neither can do this.

    Both want head widths divisible by 8, up to 256. torch's sums gradients by atomics unless the whole
    process is set to deterministic algorithms, so it serves inference alone.
    """
    if width % 8 or width > 256:
        return None
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return None if gradients else _of_torch(grouped)
    return _by_flash_attn(flash_attn_varlen_func)


def _by_flash_attn(function: Callable[..., Tensor]) -> Packed:
    def attend(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int) -> Tensor:
        lengths = starts, starts, longest, longest
        return function(query, key, value, *lengths, causal=True, deterministic=True)

    return attend


def _of_torch(grouped: bool) -> Packed | None:
    if not torch.backends.cuda.is_flash_attention_available():
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    function: Callable[..., Any] = varlen_attn
    return _by_torch(function, grouped)


def _by_torch(function: Callable[..., Any], grouped: bool) -> Packed | None:
    """torch.nn.attention.varlen, whose options differ: is_causal in 2.10, a window since 2.11; by 2.12
    grouped queries and a fixed number of splits, without which a row's bits may depend on its neighbours.

    None: queries are grouped, and this torch cannot do that.
    """
    known = inspect.signature(function).parameters
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    if "num_splits" in known:
        options["num_splits"] = 1
    if grouped:
        if "enable_gqa" not in known:
            return None
        options["enable_gqa"] = True

    def attend(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int) -> Tensor:
        return function(query, key, value, starts, starts, longest, longest, **options)

    return attend


def _needs_grad(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def _longest(bounds: Sequence[int]) -> int:
    return max((end - start for start, end in pairwise(bounds)), default=0)


def _check(query: Tensor, key: Tensor, value: Tensor, bounds: Sequence[int], starts: Tensor) -> None:
    check_heads(query, (None, None, None), query)
    tokens, heads, width = query.shape
    check_heads(key, (tokens, None, width), query)
    check(key.shape[1] > 0 and heads % key.shape[1] == 0, key, f"as many heads as divide {heads}")
    check_heads(value, tuple(key.shape), query)
    fits = bool(bounds) and bounds[0] == 0 and bounds[-1] == tokens
    fits = fits and all(start <= end for start, end in pairwise(bounds))
    check(fits, f"bounds {tuple(bounds)!s:.60}", f"rising from 0 to {tokens}")
    fits = starts.shape == (len(bounds),) and starts.dtype == torch.int32 and starts.device == query.device
    check(fits and starts.is_contiguous(), starts, f"a contiguous int32 ({len(bounds)},) on {query.device}")


def varlen_attention_cpu_takes(query: Tensor, key: Tensor, value: Tensor, starts: Tensor) -> bool:
    """Whether varlen_attention_cpu can run it."""
    return (
        query_fits(query, key.shape[1])
        and heads_fit(key, query)
        and heads_fit(value, query)
        and key.shape == value.shape == (len(query), key.shape[1], query.shape[2])
        and starts.dtype == torch.int32
        and starts.is_contiguous()
    )


def varlen_attention_cpu(
    library: ctypes.CDLL,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    pool: int | None = None,
    path: int = 0,
) -> Tensor:
    """As varlen_attention_reference, in libowl_cpu, without gradients, for what varlen_attention_cpu_takes;
    the bits of paged_attention_cpu over the same keys and values. starts: bounds as a tensor."""
    task, out = task_of(query, key.shape[1], len(starts) - 1)
    put_new(task, key, value)
    task.bounds = starts.data_ptr()
    function(library, "packed_attention")(pool, task, path)
    return out
