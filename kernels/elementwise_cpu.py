"""What the elementwise operations of libowl_cpu share: typed functions, and which tensors they take."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from ctypes import c_float, c_int32, c_int64, c_void_p

from torch import Tensor

from owl_fast.kernels.cpu_calls import TYPES

_ARGUMENTS = {
    "layer_norm": (c_void_p, c_int32, *(c_void_p,) * 4, c_int64, c_int64, c_float, c_int32),
    "swiglu": (c_void_p, c_int32, *(c_void_p,) * 2, c_int64, c_int64, c_int32),
    "quick_gelu": (c_void_p, c_int32, *(c_void_p,) * 3, c_int64, c_int64, c_int32),
    "swiglu_backward": (c_void_p, c_int32, *(c_void_p,) * 3, c_int64, c_int64, c_int32),
    "rms_norm_backward": (c_void_p, c_int32, *(c_void_p,) * 4, c_int64, c_int64, c_float, c_int32),
    "dequantize": (
        *(c_void_p, c_int32, c_int32, c_void_p, c_int64, c_void_p, c_void_p),
        *(c_int64, c_int64, c_int64, c_int32),
    ),
}


def rows_fit(x: Tensor, *vectors: Tensor | None) -> bool:
    """x (..., H) of any strides and contiguous vectors (H,): fp32 or bf16 on the CPU, one dtype.

    Strides may follow the number of rows (expanded ones), and must not decide about bits.
    """
    fits = x.device.type == "cpu" and x.dtype in TYPES and x.dim() > 0
    return fits and all(
        v is None
        or (v.dtype == x.dtype and v.device == x.device and v.shape == x.shape[-1:] and v.is_contiguous())
        for v in vectors
    )


def address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


@functools.cache
def function(library: ctypes.CDLL, name: str) -> Callable[..., None]:
    """owl_<name>."""
    found = getattr(library, f"owl_{name}")
    found.argtypes, found.restype = _ARGUMENTS[name], None
    return found
