"""RMSNorm over the last axis:  y = round(x / sqrt(mean(x^2) + eps)) * weight.

Zhang and Sennrich 2019, as LLaMA uses it: the mean and the scaling are computed in fp32, the scaled row is
rounded to the dtype of x, then multiplied by the weight in that dtype.

Shapes: x (..., H), weight (H,) -> (..., H), all of one dtype.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

_NAMES = {torch.float32: "owl_rms_norm_f32", torch.bfloat16: "owl_rms_norm_bf16"}


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Plain torch, any device and floating dtype; float64 stays float64."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return weight * (wide * scale).to(x.dtype)


def rms_norm_cpu_takes(x: Tensor, weight: Tensor) -> bool:
    """Whether rms_norm_cpu can run these: contiguous fp32 or bf16 on the CPU, one dtype, matching widths."""
    return (
        x.device.type == "cpu"
        and weight.device.type == "cpu"
        and x.dtype in _NAMES
        and weight.dtype == x.dtype
        and x.dim() > 0
        and weight.shape == x.shape[-1:]
        and x.is_contiguous()
        and weight.is_contiguous()
    )


def rms_norm_cpu(library: ctypes.CDLL, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """libowl_cpu's version, without gradients. x (..., H) and weight (H,) as rms_norm_cpu_takes demands.

    A row's bits depend on that row alone: not on the number of rows, and not on the machine. Against
    rms_norm_reference they may differ by the order in which the squares are summed.
    """
    assert rms_norm_cpu_takes(x, weight), (x.dtype, x.shape, x.stride(), weight.dtype, weight.shape)
    out = torch.empty_like(x)
    width = x.shape[-1]
    rows = math.prod(x.shape[:-1])
    _function(library, _NAMES[x.dtype])(x.data_ptr(), weight.data_ptr(), out.data_ptr(), rows, width, eps)
    return out


@functools.cache
def _function(library: ctypes.CDLL, name: str) -> Callable[..., None]:
    function = getattr(library, name)
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = (pointer, pointer, pointer, count, count, ctypes.c_float)
    function.restype = None
    return function
