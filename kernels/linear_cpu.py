"""Every linear layer of inference on the CPU, in one call into libowl_cpu.

    y = residual + activation(rms_norm(x) W^T + bias + update)

W is dense, in the dtype of x and read where it is (a mapped file, say), or quantized and tiled. The formula
in full is fused_linear_reference in lora_linear.py, with activations rounded as quantized_linear.py says
where W is quantized. Sums and what follows are fp32, rounded once. A row's bits depend on nothing but the
row, its adapter and the instruction set ("path"), not on other rows or threads.

Shapes: x (..., K) fp32 or bf16, W (N, K), bias (N,), norm (K,), residual (..., N) -> (..., N); "swiglu" takes
[gate; up] and has N / 2 outputs. The update's owner counts the rows of x flattened.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from owl_fast.kernels.cpu_calls import TYPES, call
from owl_fast.kernels.launch import check
from owl_fast.kernels.quantized_linear import form_of, tiled_bytes
from owl_fast.kernels.weights import StackedLora, TiledWeight

_ACTIVATIONS = {None: 0, "swiglu": 1, "quick_gelu": 2}
_TASK = struct.Struct("@10P5q4if0q")  # owl_linear_task


def paths(library: ctypes.CDLL) -> tuple[str, ...]:
    """The instruction sets that library and machine have in common, best first."""
    return _calls(library).paths


def linear_cpu_takes(x: Tensor, weight: object, *others: Tensor | None) -> bool:
    """Whether linear_cpu can run it: tensors with memory of their own, on the CPU, of one dtype.

    weight: a quantized one always, tiled or then made dense. others: bias, residual, the norm's weight and
    the adapters' matrices.
    """
    dtype = x.dtype
    if type(x) is not Tensor or not x.is_cpu or dtype not in TYPES or x.dim() == 0:
        return False
    dense = weight if isinstance(weight, Tensor) else None
    if dense is not None and not dense.is_contiguous():
        return False
    return all(t is None or (t.dtype is dtype and t.is_cpu) for t in (dense, *others))


def linear_cpu(
    library: ctypes.CDLL,
    x: Tensor,
    weight: Tensor | TiledWeight,
    bias: Tensor | None = None,
    lora: StackedLora | None = None,
    *,
    norm: tuple[Tensor, float] | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    pool: int | None = None,
    path: int = 0,
) -> Tensor:
    """Without gradients. pool: native.Pool.handle. path: a place in paths()."""
    calls = _calls(library)
    outputs, inputs = weight.shape
    shape, dtype = x.shape, x.dtype
    if isinstance(weight, TiledWeight):
        data, group, form = weight.data, weight.group, form_of(weight.group, weight.narrow)
        fits = data.numel() == tiled_bytes(library, form, outputs, inputs, group)
    else:
        data, group, form = weight, 0, 0
        fits = data.dtype is dtype
    fits = fits and data.is_contiguous() and data.is_cpu
    swiglu = activation == "swiglu"
    known = bool(shape) and shape[-1] == inputs and dtype in TYPES and x.is_cpu
    # Every layer of every step comes by here: what is wrong is put into words only where something is.
    if not (fits and known and 0 <= path < len(calls.paths) and not (swiglu and outputs % 2)):
        check(known, x, f"fp32 or bf16 (..., {inputs}) on the CPU")
        check(
            fits, data, f"{'the bytes of a tiled' if form else f'a contiguous {dtype}'} {(outputs, inputs)}"
        )
        check(not swiglu or outputs % 2 == 0, f"{outputs} rows", "gate and up, of equal height")
        check(False, f"path {path}", f"one of {calls.paths}")
    rows = x.numel() // inputs if inputs else shape[:-1].numel()
    x = x.contiguous()  # kept, like what follows, until the call is over
    y = x.new_empty((*shape[:-1], outputs // 2 if swiglu else outputs))
    gain, eps = (None, 0.0) if norm is None else norm
    residual = None if residual is None else residual.contiguous()
    a, b, scale, owner, rank = _adapters(lora, rows, outputs, inputs, dtype)
    task = _TASK.pack(
        x.data_ptr(), data.data_ptr(), _address(gain, dtype, (inputs,)), _address(bias, dtype, (outputs,)),
        _address(residual, dtype, y.shape), a, b, scale, owner, y.data_ptr(),
        rows, outputs, inputs, group, rank,
        TYPES[dtype], form, _ACTIVATIONS[activation], path, eps,
    )  # fmt: skip
    workspace = x.new_empty(calls.workspace(task), dtype=torch.uint8)
    kept = x, weight, bias, lora, norm, residual, y, workspace
    call(calls.run, pool, task, workspace.data_ptr(), keep=kept)
    return y


def _address(tensor: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    if tensor is None:
        return 0
    if not (tensor.dtype is dtype and tensor.shape == shape and tensor.is_cpu and tensor.is_contiguous()):
        check(False, tensor, f"a contiguous {dtype} {tuple(shape)} on the CPU")
    return tensor.data_ptr()


def _adapters(
    lora: StackedLora | None, rows: int, outputs: int, inputs: int, dtype: torch.dtype
) -> tuple[int, int, int, int, int]:
    """Addresses of a, b, scale and owner, and the rank."""
    if lora is None:
        return 0, 0, 0, 0, 0
    count, rank = lora.scale.shape
    return (
        _address(lora.a, dtype, (count, rank, inputs)),
        _address(lora.b, dtype, (count, outputs, rank)),
        _address(lora.scale, torch.float32, (count, rank)),
        _address(lora.owner, torch.int32, (rows,)),
        rank,
    )


class _Calls(NamedTuple):
    """Functions of the library with their types, which cost some microseconds to find."""

    workspace: Callable[[bytes], int]
    run: Callable[[int | None, bytes, int], None]
    paths: tuple[str, ...]


@functools.cache
def _calls(library: ctypes.CDLL) -> _Calls:
    workspace, run, names = library.owl_linear_workspace, library.owl_linear, library.owl_linear_paths
    workspace.argtypes, workspace.restype = (ctypes.c_char_p,), ctypes.c_int64
    run.argtypes, run.restype = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p), None
    names.argtypes, names.restype = (), ctypes.c_char_p
    return _Calls(workspace, run, tuple(names().decode().split(",")))
