"""One function per operation; each picks the backend that fits the device. The only importer of kernels/."""

from __future__ import annotations

import torch
from torch import Tensor

from owl_fast import native
from owl_fast.kernels.cross_attention import cross_attention_reference as cross_attention
from owl_fast.kernels.dense_attention import dense_attention_reference as dense_attention
from owl_fast.kernels.kv_append import kv_append_reference as kv_append
from owl_fast.kernels.layer_norm import layer_norm_reference as layer_norm
from owl_fast.kernels.linear_cross_entropy import linear_cross_entropy_reference as linear_cross_entropy
from owl_fast.kernels.lora_linear import LoraUpdate
from owl_fast.kernels.lora_linear import lora_linear_reference as lora_linear
from owl_fast.kernels.paged_attention import paged_attention_reference as paged_attention
from owl_fast.kernels.quick_gelu import quick_gelu_reference as quick_gelu
from owl_fast.kernels.rms_norm import rms_norm_cpu, rms_norm_cpu_takes, rms_norm_reference
from owl_fast.kernels.rotary import rotary_reference as rotary
from owl_fast.kernels.rotary import rotary_tables
from owl_fast.kernels.swiglu import swiglu_reference as swiglu
from owl_fast.kernels.varlen_attention import varlen_attention_reference as varlen_attention

__all__ = [
    "LoraUpdate",
    "cross_attention",
    "dense_attention",
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


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., D), weight (D,) -> (..., D): in libowl_cpu where it applies and no gradient is needed."""
    needs_grad = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if not needs_grad and rms_norm_cpu_takes(x, weight):
        library = native.library()
        if library is not None:
            return rms_norm_cpu(library, x, weight, eps)
    return rms_norm_reference(x, weight, eps)
