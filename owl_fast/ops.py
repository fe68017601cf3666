"""One function per operation; each picks the backend that fits the device. The only importer of kernels/.

Triton kernels on GPUs, libowl_cpu where it has the operation, plain torch for everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from owl_fast import native
from owl_fast.backends import (
    Backend,
    backend,
    differentiates,
    exact,
    exactly,
    kernels,
    native_library,
    natively,
    uses_kernels,
    wants_gradient,
)
from owl_fast.kernels.attention_torch import attention_bytes, attention_torch
from owl_fast.kernels.cpu_calls import TYPES
from owl_fast.kernels.cpu_calls import recorded as recorded_calls
from owl_fast.kernels.cross_attention import (
    cross_attention_cpu,
    cross_attention_cpu_takes,
    cross_attention_reference,
    cross_attention_triton,
)
from owl_fast.kernels.decode_attention import (
    DecodeWorkspace,
    decode_attention_cpu,
    decode_attention_cpu_takes,
    decode_attention_reference,
    decode_attention_triton,
)
from owl_fast.kernels.dense_attention import (
    dense_attention_cpu,
    dense_attention_cpu_takes,
    dense_attention_reference,
    dense_attention_triton,
)
from owl_fast.kernels.dequantize import dequantize_cpu, dequantize_cpu_takes
from owl_fast.kernels.embedding import embedding_cpu, embedding_reference, embedding_triton
from owl_fast.kernels.kept import Kept, Kind
from owl_fast.kernels.kv_append import (
    append_cpu_takes,
    rotary_append_cpu,
    rotary_append_reference,
    rotary_append_triton,
)
from owl_fast.kernels.layer_norm import (
    layer_norm_cpu,
    layer_norm_cpu_takes,
    layer_norm_reference,
    layer_norm_triton,
)
from owl_fast.kernels.linear_cpu import linear_cpu, linear_cpu_takes
from owl_fast.kernels.linear_cross_entropy import (
    linear_cross_entropy_reference,
    linear_cross_entropy_triton,
)
from owl_fast.kernels.linear_cross_entropy_torch import linear_cross_entropy_torch, loss_bytes
from owl_fast.kernels.linear_few_rows import MOST_ROWS, linear_few_rows
from owl_fast.kernels.linear_many_rows import linear_many_rows
from owl_fast.kernels.linear_torch import linear_torch
from owl_fast.kernels.lora_linear import (
    LoraUpdate,
    fused_linear_reference,
    lora_linear_reference,
    lora_linear_triton,
    stack_adapters,
    stack_updates,
)
from owl_fast.kernels.paged_attention import (
    paged_attention_cpu,
    paged_attention_cpu_takes,
    paged_attention_reference,
    paged_attention_triton,
)
from owl_fast.kernels.quantized_linear import pack, unpack
from owl_fast.kernels.quick_gelu import (
    quick_gelu_cpu,
    quick_gelu_cpu_takes,
    quick_gelu_reference,
    quick_gelu_triton,
)
from owl_fast.kernels.rms_norm import (
    rms_norm_cpu,
    rms_norm_cpu_takes,
    rms_norm_gradient_cpu,
    rms_norm_reference,
    rms_norm_triton,
)
from owl_fast.kernels.rotary import rotary_reference, rotary_tables, rotary_triton
from owl_fast.kernels.rows_torch import backward_bytes, rows_torch
from owl_fast.kernels.sampling import (
    MAX_BIASES,
    SamplingSettings,
    SamplingState,
    charges,
    sampling_settings,
    sampling_state,
)
from owl_fast.kernels.sampling import draw_reference as draw
from owl_fast.kernels.sampling_kernel import NONE_ALLOWED, NOT_FINITE
from owl_fast.kernels.sampling_kernel import sample_triton as sample
from owl_fast.kernels.shared_prefix import SharedPrefix
from owl_fast.kernels.swiglu import (
    swiglu_cpu,
    swiglu_cpu_takes,
    swiglu_gradient_cpu,
    swiglu_reference,
    swiglu_triton,
)
from owl_fast.kernels.varlen_attention import (
    varlen_attention_cpu,
    varlen_attention_cpu_takes,
    varlen_attention_gpu,
    varlen_attention_reference,
)
from owl_fast.kernels.weights import Int4Weight, Int8Weight, StackedLora, TiledWeight, Weight
from owl_fast.kernels.weights import dequantize as dequantize_reference

__all__ = [
    "MAX_BIASES", "NONE_ALLOWED", "NOT_FINITE", "Backend", "DecodeWorkspace", "Int4Weight", "Int8Weight",
    "Kept", "Kind", "LoraUpdate", "SamplingSettings", "SamplingState", "SharedPrefix", "StackedLora",
    "TiledWeight", "Weight", "attention_bytes", "backend", "backward_bytes", "canonical", "charges",
    "cross_attention", "decode_attention", "decodes_at_once", "dense_attention", "dequantize", "draw",
    "embedding", "exactly", "kernels", "layer_norm", "linear_cross_entropy", "lora_linear", "loss_bytes",
    "paged_attention", "quick_gelu", "recorded", "repeats", "rms_norm", "rotary", "rotary_append",
    "rotary_tables", "sample", "sampling_settings", "sampling_state", "stack_adapters", "stack_updates",
    "swiglu", "tiled", "uses_kernels", "varlen_attention",
]  # fmt: skip


def decodes_at_once(x: Tensor) -> bool:
    """Whether decode_attention is one call for a model whose rows are like x."""
    if uses_kernels(x):
        return not exact()
    native_types = x.device.type == "cpu" and x.dtype in TYPES and not torch.is_grad_enabled()
    return native_types and native_library() is not None


def repeats(x: Tensor) -> bool:
    """Whether a decode step of a model whose rows are like x can be recorded by `recorded`."""
    return not uses_kernels(x) and decodes_at_once(x)


def recorded(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """work, a decode step over fixed tensors on a CPU, done again by each call of the result, which gives the
    same tensor every time; as far as work is calls of libowl_cpu."""
    return recorded_calls(work, native.pool)


def embedding(ids: Tensor, table: Tensor, padding: int | None = None) -> Tensor:
    """ids (N,), table (V, C) -> (N, C); the row `padding` gets no gradient."""
    if not wants_gradient(table):
        if uses_kernels(table):
            return embedding_triton(ids, table)
        if table.device.type == "cpu" and ids.dim() == 1:
            return embedding_cpu(ids, table)
    return embedding_reference(ids, table, padding)


def rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """query (N, H, D), key (N, K, D), angles (N, D/2) -> both rotated."""
    if uses_kernels(query):
        return rotary_triton(query, key, cos, sin)
    return rotary_reference(query, cos, sin), rotary_reference(key, cos, sin)


def rotary_append(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> Tensor:
    """query (N, H, D) rotated; key (N, K, D) rotated and value are written into the slots (N,) of the caches
    (blocks, block_size, K, D), an int8 cache with its scales (blocks, block_size, K). No gradients."""
    args = (query, key, value, cos, sin, key_cache, value_cache, slot_mapping, key_scale, value_scale)
    if uses_kernels(query):
        return rotary_append_triton(*args)
    if append_cpu_takes(*args) and (library := native_library(query, key, value)) is not None:
        return rotary_append_cpu(library, *args, native.pool())
    return rotary_append_reference(*args)


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    cu_seqlens: Tensor,
    context_lens: Tensor,
    bounds: Sequence[int],
    lengths: Sequence[int],
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> Tensor:
    """query (T, H, D) of B sequences, the last of each one's keys in the cache -> (T, H, D). No gradients.

    bounds and lengths: cu_seqlens (B + 1,) and context_lens (B,) on the host.
    """
    scales = key_scale, value_scale
    if uses_kernels(query):
        longest = max((end - start for start, end in pairwise(bounds)), default=0)
        return paged_attention_triton(
            query, key_cache, value_cache, block_tables, cu_seqlens, context_lens, longest, *scales,
            exact=exact(),
        )  # fmt: skip
    args = (query, key_cache, value_cache, block_tables, cu_seqlens, context_lens, *scales)
    if paged_attention_cpu_takes(*args) and (library := native_library(query)) is not None:
        return paged_attention_cpu(library, *args, native.pool())
    return paged_attention_reference(query, key_cache, value_cache, block_tables, bounds, lengths, *scales)


def decode_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    workspace: DecodeWorkspace | None = None,
) -> Tensor:
    """rotary_append and paged_attention for one row per sequence; cos, sin (positions, D/2) of all positions.

    workspace: for kernels; without one they make one for the call.
    """
    new = query, key, value, cos, sin, positions
    args = (*new, key_cache, value_cache, slot_mapping, block_tables, context_lens, key_scale, value_scale)
    if uses_kernels(query):
        return decode_attention_triton(*args, workspace)
    if decode_attention_cpu_takes(*args) and (library := native_library(query, key, value)) is not None:
        return decode_attention_cpu(library, *args, native.pool())
    return decode_attention_reference(*args)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., D), weight (D,) -> (..., D): in libowl_cpu where it applies and no gradient is needed."""
    if uses_kernels(x):
        return rms_norm_triton(x, weight, eps)
    if differentiates(x, weight):
        run, reference = partial(rms_norm, eps=eps), partial(rms_norm_reference, eps=eps)
        own = partial(rms_norm_gradient_cpu, eps=eps)
        gradient = natively(own) if rms_norm_cpu_takes(x, weight) else None
        return rows_torch(run, reference, x, weight, gradient=gradient)
    if rms_norm_cpu_takes(x, weight) and (library := native_library(x, weight)) is not None:
        return rms_norm_cpu(library, x, weight, eps)
    return rms_norm_reference(x, weight, eps)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """x (..., D), weight and bias (D,) or None -> (..., D), computed in float32."""
    if uses_kernels(x):
        return layer_norm_triton(x, weight, bias, eps)
    if differentiates(x, weight, bias):
        run, reference = partial(layer_norm, eps=eps), partial(layer_norm_reference, eps=eps)
        return rows_torch(run, reference, x, weight, bias)
    if layer_norm_cpu_takes(x, weight, bias) and (library := native_library(x, weight, bias)) is not None:
        return layer_norm_cpu(library, x, weight, bias, eps, native.pool())
    return layer_norm_reference(x, weight, bias, eps)


def quick_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., F), bias (F,) or None -> (..., F)."""
    if uses_kernels(x):
        return quick_gelu_triton(x, bias)
    if differentiates(x, bias):
        return rows_torch(quick_gelu, quick_gelu_reference, x, bias)
    if quick_gelu_cpu_takes(x, bias) and (library := native_library(x, bias)) is not None:
        return quick_gelu_cpu(library, x, bias, native.pool())
    return quick_gelu_reference(x, bias)


def swiglu(gate_up: Tensor) -> Tensor:
    """gate_up (..., 2F), gate first -> (..., F)."""
    if uses_kernels(gate_up):
        return swiglu_triton(gate_up)
    if differentiates(gate_up):
        gradient = natively(swiglu_gradient_cpu) if swiglu_cpu_takes(gate_up) else None
        return rows_torch(swiglu, swiglu_reference, gate_up, gradient=gradient)
    if swiglu_cpu_takes(gate_up) and (library := native_library(gate_up)) is not None:
        return swiglu_cpu(library, gate_up, native.pool())
    return swiglu_reference(gate_up)


Activation = Literal["swiglu", "quick_gelu"]


def tiled(weight: Int8Weight | Int4Weight) -> TiledWeight | None:
    """A copy of a weight on the CPU as libowl_cpu reads it, which lora_linear runs faster; None elsewhere."""
    library = native.library() if weight.q.device.type == "cpu" else None
    return None if library is None else pack(library, weight, native.pool())


def dequantize(weight: Weight, dtype: torch.dtype) -> Tensor:
    """W (N, K) in `dtype`; the same bits wherever it runs."""
    library = None if isinstance(weight, Tensor) else native_library()
    if isinstance(weight, Tensor) or library is None or not dequantize_cpu_takes(weight, dtype):
        return dequantize_reference(weight, dtype)
    return dequantize_cpu(library, weight, dtype, native.pool())


def canonical(weight: Int8Weight | Int4Weight | TiledWeight) -> Int8Weight | Int4Weight:
    """A weight as files hold it, bit by bit; a copy of a tiled one."""
    return unpack(weight) if isinstance(weight, TiledWeight) else weight


def lora_linear(
    x: Tensor,
    weight: Weight | TiledWeight,
    bias: Tensor | None = None,
    lora: Sequence[LoraUpdate] | StackedLora = (),
    *,
    norm: tuple[Tensor, float] | None = None,
    activation: Activation | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """residual + activation(linear(rms_norm(x))): x (..., in), weight (out, in) -> (..., out).

    lora: low-rank updates, or several adapters stacked (M, in only), which takes no gradients. norm: weight
    (in,) and eps of an RMSNorm in front. "swiglu" takes [gate; up] and gives half as many rows. A tiled
    weight's inputs are rounded to int8 where no gradient is wanted: see kernels/quantized_linear.py.
    """
    if not uses_kernels(x):
        return _linear_without_kernels(x, weight, bias, lora, norm, activation, residual)
    weight = unpack(weight) if isinstance(weight, TiledWeight) else weight
    if isinstance(lora, StackedLora):
        return _linear_forward(x, weight, bias, lora, norm, activation, residual)
    if not lora and not wants_gradient(x, weight, bias, residual, *(norm or ())):
        return _linear_forward(x, weight, bias, None, norm, activation, residual)
    x = x if norm is None else rms_norm(x, *norm)
    return lora_linear_triton(x, weight, bias, lora, activation=activation, residual=residual)


def _linear_without_kernels(
    x: Tensor,
    weight: Weight | TiledWeight,
    bias: Tensor | None,
    lora: Sequence[LoraUpdate] | StackedLora,
    norm: tuple[Tensor, float] | None,
    activation: Activation | None,
    residual: Tensor | None,
) -> Tensor:
    y = _linear_cpu(x, weight, bias, lora, norm, activation, residual)
    if y is not None:
        return y
    weight = unpack(weight) if isinstance(weight, TiledWeight) else weight
    if isinstance(lora, StackedLora):
        return fused_linear_reference(
            x, weight, bias, lora, norm=norm, activation=activation, residual=residual
        )
    x = x if norm is None else rms_norm(x, *norm)
    pairs = (t for update in lora for t in (update.a, update.b))
    if not differentiates(x, weight, bias, residual, *pairs):
        return _finish(lora_linear_reference(x, weight, bias, lora), activation, residual)
    y = linear_torch(x, weight, bias, lora, residual if activation is None else None, dequantize)
    return y if activation is None else _finish(y, activation, residual)


def _linear_cpu(
    x: Tensor,
    weight: Weight | TiledWeight,
    bias: Tensor | None,
    lora: Sequence[LoraUpdate] | StackedLora,
    norm: tuple[Tensor, float] | None,
    activation: Activation | None,
    residual: Tensor | None,
) -> Tensor | None:
    """libowl_cpu's lora_linear; None where there is no library, where it cannot run that, or a gradient or
    dropout is wanted."""
    gain = None if norm is None else norm[0]
    pair = (lora.a, lora.b) if isinstance(lora, StackedLora) else ()
    if not linear_cpu_takes(x, weight, bias, residual, gain, *pair) or torch.is_autocast_enabled("cpu"):
        return None
    updates = () if isinstance(lora, StackedLora) else lora
    dense = weight if isinstance(weight, Tensor) else None
    pairs = (t for update in updates for t in (update.a, update.b))
    if (library := native_library(x, dense, bias, residual, gain, *pairs)) is None:
        return None
    if updates:
        if any(update.dropout for update in updates):
            return None
        lora = stack_updates(updates, weight.shape[0], x.dtype)
    one = lora if isinstance(lora, StackedLora) else None
    ready = weight if isinstance(weight, (Tensor, TiledWeight)) else dequantize(weight, x.dtype)
    return linear_cpu(
        library, x, ready, bias, one, norm=norm, activation=activation, residual=residual, pool=native.pool()
    )


def _finish(y: Tensor, activation: Activation | None, residual: Tensor | None) -> Tensor:
    if activation is not None:
        y = swiglu(y) if activation == "swiglu" else quick_gelu(y)
    return y if residual is None else residual + y


def _linear_forward(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None,
    lora: StackedLora | None,
    norm: tuple[Tensor, float] | None,
    activation: Activation | None,
    residual: Tensor | None,
) -> Tensor:
    """Without gradients: one launch for up to MOST_ROWS rows; for more, a norm takes one of its own."""
    if x.dim() == 2 and len(x) <= MOST_ROWS and not exact():
        return linear_few_rows(x, weight, bias, lora, norm=norm, activation=activation, residual=residual)
    x = x if norm is None else rms_norm(x, *norm)
    return linear_many_rows(x, weight, bias, lora, activation=activation, residual=residual, exact=exact())


def linear_cross_entropy(hidden: Tensor, weight: Weight | TiledWeight, targets: Tensor) -> Tensor:
    """hidden (M, D) of labelled rows, head (V, D) dense or quantized, targets (M,) -> the sum of losses."""
    weight = canonical(weight) if isinstance(weight, TiledWeight) else weight
    if uses_kernels(hidden):
        return linear_cross_entropy_triton(hidden, weight, targets)
    if differentiates(hidden, weight):
        return linear_cross_entropy_torch(hidden, weight, targets, dequantize)
    return linear_cross_entropy_reference(hidden, weight, targets)


def cross_attention(
    query: Tensor,
    query_key_value: Tensor,
    image_key_value: Tensor,
    dropout: float = 0.0,
    extra_key_value: Tensor | None = None,
) -> Tensor:
    """query (N, Q, H, D) over keys and values (N, Q, 2, H, D), (N, P, 2, H, D), and (2, H, D) for all."""
    inputs = query, query_key_value, image_key_value
    if uses_kernels(query):
        return cross_attention_triton(*inputs, dropout, extra_key_value)
    fits = not dropout and cross_attention_cpu_takes(*inputs, extra_key_value)
    if fits and (library := native_library(*inputs, extra_key_value)) is not None:
        return cross_attention_cpu(library, *inputs, extra_key_value, native.pool())
    return cross_attention_reference(*inputs, dropout, extra_key_value)


def dense_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """query (N, L, H, D), key and value (N, S, H, D) -> (N, L, H, D), unmasked."""
    if uses_kernels(query):
        return dense_attention_triton(query, key, value)
    if query.is_cpu and differentiates(query, key, value):
        return attention_torch(query, key, value, None, dense_attention)
    fits = dense_attention_cpu_takes(query, key, value)
    if fits and (library := native_library(query, key, value)) is not None:
        return dense_attention_cpu(library, query, key, value, native.pool())
    return dense_attention_reference(query, key, value)


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, bounds: Sequence[int], starts: Tensor
) -> Tensor:
    """query (T, H, D), key and value (T, K, D) -> (T, H, D), causal within each sequence.

    bounds (B + 1): where sequences begin and end, on the host. starts: the same on the device, int32.
    """
    if uses_kernels(query):
        return varlen_attention_gpu(query, key, value, bounds, starts)
    if query.is_cpu and differentiates(query, key, value):
        attend = partial(varlen_attention, bounds=bounds, starts=starts)
        return attention_torch(query, key, value, bounds, attend)
    fits = varlen_attention_cpu_takes(query, key, value, starts)
    if fits and (library := native_library(query, key, value)) is not None:
        return varlen_attention_cpu(library, query, key, value, starts, native.pool())
    return varlen_attention_reference(query, key, value, bounds)
