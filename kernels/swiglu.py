"""SwiGLU gate (arXiv 2002.05202): y = silu(gate) * up, gate and up side by side in one tensor.

Shapes: gate_up (..., 2F), gate first -> (..., F). The kernels compute in float32 and round once.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from owl_fast.kernels.cpu_calls import TYPES
from owl_fast.kernels.elementwise_cpu import function, rows_fit
from owl_fast.kernels.launch import check, jit, launch, power_of_two, tl
from owl_fast.kernels.rows import as_rows, check_rows


def swiglu_reference(gate_up: Tensor) -> Tensor:
    """gate_up (..., 2F), gate first -> (..., F)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


@jit
def _swiglu_fwd_kernel(x, y, x_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """One tile of one row per program: x (N, 2F) of any row stride -> y (N, F) contiguous."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < WIDTH
    gate = tl.load(x + row * x_stride + cols, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + row * x_stride + WIDTH + cols, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * WIDTH + cols, (gate * tl.sigmoid(gate) * up).to(y.dtype.element_ty), mask=inside)


@jit
def _swiglu_bwd_kernel(x, dy, dx, x_stride, dy_stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """With s = sigmoid(gate):  dgate = dy up s (1 + gate (1 - s)),  dup = dy gate s;  dx contiguous."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < WIDTH
    gate = tl.load(x + row * x_stride + cols, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + row * x_stride + WIDTH + cols, mask=inside, other=0.0).to(tl.float32)
    given = tl.load(dy + row * dy_stride + cols, mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    dgate = given * up * share * (1.0 + gate * (1.0 - share))
    dup = given * gate * share
    tl.store(dx + row * (2 * WIDTH) + cols, dgate.to(dx.dtype.element_ty), mask=inside)
    tl.store(dx + row * (2 * WIDTH) + WIDTH + cols, dup.to(dx.dtype.element_ty), mask=inside)


def launch_spec(width: int) -> dict[str, int]:
    """Tiles of 1024: 8 values a thread, a 128-bit load of bf16 of either half; small, so that one row alone
    (decoding) is spread over several multiprocessors. Not measured yet."""
    block = min(power_of_two(width), 1024)
    return {"WIDTH": width, "BLOCK": block, "num_warps": min(max(block // 256, 1), 4)}


def swiglu_triton(gate_up: Tensor) -> Tensor:
    """As swiglu_reference, on a GPU, with a gradient; rows of any stride."""
    check_rows(gate_up)
    check(gate_up.shape[-1] % 2 == 0, gate_up, "an even last dimension: gate and up")
    return _Swiglu.apply(gate_up)


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        rows = as_rows(gate_up)
        width = gate_up.shape[-1] // 2
        y = gate_up.new_empty(*gate_up.shape[:-1], width)
        spec = launch_spec(width)
        grid = len(rows), -(-width // spec["BLOCK"])
        launch(_swiglu_fwd_kernel, grid, rows, y, rows.stride(0), **spec)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        rows, given = as_rows(gate_up), as_rows(dy)
        dx = torch.empty(gate_up.shape, dtype=gate_up.dtype, device=gate_up.device)
        spec = launch_spec(dy.shape[-1])
        grid = len(rows), -(-dy.shape[-1] // spec["BLOCK"])
        launch(_swiglu_bwd_kernel, grid, rows, given, dx, rows.stride(0), given.stride(0), **spec)
        return dx


def swiglu_cpu_takes(gate_up: Tensor) -> bool:
    """Whether swiglu_cpu can run it."""
    return rows_fit(gate_up) and gate_up.shape[-1] % 2 == 0


def swiglu_cpu(library: ctypes.CDLL, gate_up: Tensor, pool: int | None = None, path: int = 0) -> Tensor:
    """As swiglu_reference, in libowl_cpu, without gradients, for what swiglu_cpu_takes; rounded once."""
    gate_up = gate_up.contiguous()
    *rows, width = gate_up.shape
    out = torch.empty((*rows, width // 2), dtype=gate_up.dtype)
    data = gate_up.data_ptr(), out.data_ptr()
    function(library, "swiglu")(pool, TYPES[gate_up.dtype], *data, math.prod(rows), width // 2, path)
    return out


def swiglu_gradient_cpu(
    library: ctypes.CDLL, gate_up: Tensor, dy: Tensor, pool: int | None = None, path: int = 0
) -> Tensor:
    """dx (..., 2F) from dy (..., F), for what swiglu_cpu_takes; rounded once."""
    gate_up, dy = gate_up.contiguous(), dy.to(gate_up.dtype).contiguous()
    dx, width = torch.empty_like(gate_up), dy.shape[-1]
    data = gate_up.data_ptr(), dy.data_ptr(), dx.data_ptr()
    function(library, "swiglu_backward")(
        pool, TYPES[dy.dtype], *data, math.prod(gate_up.shape[:-1]), width, path
    )
    return dx
