"""One function per operation; each picks the backend that fits the device. The only importer of kernels/.

Triton kernels on GPUs, libowl_cpu where it has the operation, plain torch for everything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from owl_fast import native
from owl_fast.kernels.cross_attention import cross_attention_reference as cross_attention
from owl_fast.kernels.dense_attention import dense_attention_reference as dense_attention
from owl_fast.kernels.kv_append import kv_append_reference as kv_append
from owl_fast.kernels.launch import supports
from owl_fast.kernels.layer_norm import layer_norm_reference as layer_norm
from owl_fast.kernels.linear_cross_entropy import linear_cross_entropy_reference as linear_cross_entropy
from owl_fast.kernels.linear_few_rows import MOST_ROWS, linear_few_rows
from owl_fast.kernels.lora_linear import LoraUpdate, fused_linear_reference
from owl_fast.kernels.lora_linear import lora_linear_reference as lora_linear
from owl_fast.kernels.paged_attention import paged_attention_reference as paged_attention
from owl_fast.kernels.quick_gelu import quick_gelu_reference as quick_gelu
from owl_fast.kernels.rms_norm import rms_norm_cpu, rms_norm_cpu_takes, rms_norm_reference, rms_norm_triton
from owl_fast.kernels.rotary import rotary_reference as rotary
from owl_fast.kernels.rotary import rotary_tables
from owl_fast.kernels.swiglu import swiglu_reference as swiglu
from owl_fast.kernels.varlen_attention import varlen_attention_reference as varlen_attention
from owl_fast.kernels.weights import StackedLora, Weight

__all__ = [
    "LoraUpdate",
    "cross_attention",
    "dense_attention",
    "fused_linear",
    "kernels",
    "kv_append",
    "layer_norm",
    "linear_cross_entropy",
    "lora_linear",
    "paged_attention",
    "quick_gelu",
    "rms_norm",
    "rotary",
    "rotary_tables",
    "swiglu",
    "varlen_attention",
]


_chosen: ContextVar[bool | None] = ContextVar("_chosen", default=None)


@contextmanager
def kernels(used: bool) -> Iterator[None]:
    """Inside the block Triton's kernels are used always (interpreted, say), or never (to compare with)."""
    token = _chosen.set(used)
    try:
        yield
    finally:
        _chosen.reset(token)


def _triton(x: Tensor) -> bool:
    chosen = _chosen.get()
    return supports(x.device) if chosen is None else chosen


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., D), weight (D,) -> (..., D): in libowl_cpu where it applies and no gradient is needed."""
    if _triton(x):
        return rms_norm_triton(x, weight, eps)
    needs_grad = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if not needs_grad and rms_norm_cpu_takes(x, weight):
        library = native.library()
        if library is not None:
            return rms_norm_cpu(library, x, weight, eps)
    return rms_norm_reference(x, weight, eps)


def fused_linear(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    lora: StackedLora | None = None,
    *,
    norm: tuple[Tensor, float] | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """act(rms_norm(x) W^T + b + lora) + residual, without gradients: x (M, K), W (N, K) -> (M, N).

    norm: weight (K,) and eps. activation: "quick_gelu", or "swiglu" of W = [gate; up], which halves N.
    """
    few = _triton(x) and len(x) <= MOST_ROWS
    linear = linear_few_rows if few else fused_linear_reference
    return linear(x, weight, bias, lora, norm=norm, activation=activation, residual=residual)
