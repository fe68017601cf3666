"""Linear layer on 1..64 rows (decoding), and what surrounds it, in one launch bound by reading the weights.

    y = act(rms_norm(x) W^T + b + ((x A^T) scale) B^T) + residual

1..4 rows, and any number in fp32 or with int4 groups that 32 does not divide, are multiplied in registers,
four at a time (linear_four_rows.py); 5..64 rows of bf16 or fp16 on tensor cores (linear_tensor_rows.py). A
row's bits depend neither on the other rows nor, on either path, on their number or on whether there are
adapters; between 4 and 5 rows the order of summation changes. One path for all would cost 16 rows of int4
some five times the time that reading W takes (arithmetic), or one row the tensor cores' padding.

Shapes: x (M, K), W (N, K), A (adapters, R, K), B (adapters, N, R) -> y (M, N), or (M, N / 2) after SwiGLU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from owl_fast.kernels.launch import GPU_DTYPES, check, launch, power_of_two
from owl_fast.kernels.linear_four_rows import linear_four_rows_kernel
from owl_fast.kernels.linear_tensor_rows import linear_tensor_rows_kernel
from owl_fast.kernels.linear_tiles import ACTIVATIONS
from owl_fast.kernels.weights import Int4Weight, Int8Weight, StackedLora, Weight

# With more rows W would be read from the L2 cache once for every 32 of them: at 128 rows some 3 ms a step of
# a 7B model on an H200, by arithmetic, where the launches this kernel saves take 0.2.
MOST_ROWS = 64
ROWS = 4  # of one program: more would need more registers than leave room for loads in flight
PROGRAMS = 264  # at most, with adapters: two on each of an H200's 132 multiprocessors; not measured yet
BUSY = 128  # programs that occupy most multiprocessors of an A100, H200 or 4090; not measured yet


def launch_spec(rows: int, inputs: int, outputs: int, bits: int, adapters: bool) -> dict[str, int]:
    """Tiles and the number of programs. bits: of a weight; rows: of x. Not measured yet on any GPU.

    Threads share K, 8 each at a time, so BLOCK_K = 256 per warp; 8 warps, fewer where K is smaller: the order
    of summation is a function of K alone. BLOCK_N: 64 bytes of W for each thread in each of two tiles under
    way (int4: 32, since its scales take registers too) leave room for 2 to 4 programs on a multiprocessor,
    which makes some 48 KB; an H200 needs about 30 KB (4.3 TB/s x 0.9 us / 132), a 4090 or 3090 about 8 KB.
    """
    warps = min(max(power_of_two(inputs) // 256, 1), 8)
    block_m = min(power_of_two(rows), ROWS)
    block_n = 4 if bits > 8 or block_m == ROWS or adapters else 8  # with adapters, 8 spill on sm_80
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_K": 256 * warps,
        "num_warps": warps,
        "programs": _programs(rows, outputs, block_m, block_n, adapters),
    }


def tensor_rows_spec(rows: int, outputs: int, bits: int, group: int, rank: int) -> dict[str, int]:
    """As launch_spec, on tensor cores; rank 0: no adapters. Not measured yet on any GPU.

    A tile of 16 rows of x takes 32 of W: an 8-wide tile for each of 4 warps, and N = 4096 is one program for
    each of 128 multiprocessors. Tiles of 32 rows read more of x than of W, once for each block of W, from the
    L2 cache: blocks are as wide as leaves BUSY programs. 128 take 8 warps, or int4 spills. Whether 17..64
    rows, say of a prompt, are faster in linear_many_rows, whose tiles are larger, is not measured either.

    Stages keep 32 KB of W under way (int8: 28 KB; int4, whose tiles end with a group: 14 KB), or what 80 KB
    of tiles of x and W allow: with 8 KB to bring normed rows into place, within the 99 of sm_86, sm_89 and
    sm_120. A tile of A takes 16 KB at most. BLOCK_K and BLOCK_A, so the order of summation, are the same for
    any number of rows.
    """
    block_r = power_of_two(max(rank, 16))
    block_k = min(group & -group, 128) if bits == 4 else 128
    block_m, block_n = (16 if rows <= 16 else 32), 32
    while block_m == 32 and block_n < 128 and -(-outputs // (2 * block_n)) * -(-rows // block_m) >= BUSY:
        block_n *= 2
    tiles = block_k * (2 * block_m + block_n * bits // 8)
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_K": block_k,
        "BLOCK_A": min(8192 // block_r, 128),
        "BLOCK_R": block_r,
        "STAGES": 1 + min(4 if bits == 16 else 7, 80 * 1024 // tiles),
        "num_warps": 8 if block_n == 128 else 4,
        "programs": _programs(rows, outputs, block_m, block_n, rank > 0),
    }


def _programs(rows: int, outputs: int, block_m: int, block_n: int, adapters: bool) -> int:
    """One for each block of x and of W; with adapters fewer, since each reads all of A."""
    parts, blocks = -(-rows // block_m), -(-outputs // block_n)
    return parts * (min(blocks, max(PROGRAMS // max(parts, 1), 1)) if adapters else blocks)


def linear_few_rows(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    lora: StackedLora | None = None,
    *,
    norm: tuple[Tensor, float] | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """As fused_linear_reference, on a GPU, without gradients: x (M, K) fp32, bf16 or fp16, M <= 64 -> (M, N).

    W (N, K): of x's dtype, int8 or int4 (group a multiple of 16). norm: weight (K,) and eps of an RMSNorm
    before. activation: None, "quick_gelu" or "swiglu", for which W is [gate; up] and y (M, N / 2). residual:
    y's shape. Everything but q and scales has x's dtype. Launches one kernel.
    """
    _check(x, weight, bias, norm, activation, residual)
    rows, inputs = x.shape
    outputs = weight.shape[0]
    if lora is not None:
        _check_lora(lora, x, outputs)
    x = x if x.stride(-1) == 1 else x.contiguous()
    y = torch.empty(rows, outputs // 2 if activation == "swiglu" else outputs, dtype=x.dtype, device=x.device)
    norm_weight, eps = norm if norm is not None else (None, 0.0)
    a, b, lora_scale, owners = lora if lora is not None else (None, None, None, None)
    adapters, rank = lora.scale.shape if lora is not None else (0, 0)
    matrix, scales, bits, group = _parts(weight)
    a = a.flatten(0, 1) if a is not None else None
    kernel: Any = linear_tensor_rows_kernel
    settings: dict[str, Any]
    if rows > ROWS and x.dtype != torch.float32 and (bits != 4 or group % 32 == 0):
        settings = tensor_rows_spec(rows, outputs, bits, group, rank)
    else:
        kernel = linear_four_rows_kernel
        settings = launch_spec(rows, inputs, outputs, bits, lora is not None)
        matrix, settings["WORDS"] = _words(matrix)
        a, settings["A_WORDS"] = (None, False) if a is None else _words(a)
        settings.update(A_BITS=8 * x.element_size(), BLOCK_R=power_of_two(max(rank, 8)))
    programs = settings.pop("programs")
    strides = [0 if t is None else t.stride(0) for t in (x, matrix, a, residual)]
    sizes = rows, inputs, outputs, adapters, -(-outputs // settings["BLOCK_N"])
    launch(
        kernel,
        (programs,),
        *(x, norm_weight, matrix, scales, bias, a, b, lora_scale, owners, residual, y, *strides, *sizes, eps),
        INPUTS=inputs,
        BITS=bits,
        GROUP=group,
        RANK=rank,
        ACTIVATION=activation,
        **settings,
    )
    return y


def _parts(weight: Weight) -> tuple[Tensor, Tensor | None, int, int]:
    """Matrix, scales, bits of a weight, and how many share a scale."""
    if isinstance(weight, Int4Weight):
        return weight.q, weight.scale, 4, weight.group
    if isinstance(weight, Int8Weight):
        return weight.q, weight.scale, 8, weight.shape[1]
    return weight, None, 8 * weight.element_size(), 1


def _words(matrix: Tensor) -> tuple[Tensor, bool]:
    """A view as int32 words of four bytes and True; else integers of its own width, False."""
    size = matrix.element_size()
    whole = all(n * size % 4 == 0 for n in (matrix.shape[1], matrix.stride(0), matrix.storage_offset()))
    if whole:
        return matrix.view(torch.int32), True
    return matrix.view(torch.int16) if size == 2 else matrix, False


def _check(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None,
    norm: tuple[Tensor, float] | None,
    activation: str | None,
    residual: Tensor | None,
) -> None:
    fits = x.dim() == 2 and x.shape[0] <= MOST_ROWS and x.shape[1] > 0 and x.dtype in GPU_DTYPES
    check(fits, x, f"fp32, bf16 or fp16 of (M, K), M at most {MOST_ROWS}, K at least 1")
    check(activation in ACTIVATIONS, f"activation {activation!r}", f"one of {ACTIVATIONS}")
    outputs, inputs = weight.shape
    check(inputs == x.shape[1], f"a weight of {inputs} inputs", f"{x.shape[1]}, the width of x")
    check(activation != "swiglu" or outputs % 2 == 0, f"{outputs} outputs", "an even number, gate and up")
    width = outputs // 2 if activation == "swiglu" else outputs
    if isinstance(weight, Int4Weight):
        _same(weight.q, (outputs, -(-inputs // 2)), torch.uint8, x.device, rows_apart=True)
        check(weight.group > 0 and weight.group % 16 == 0, f"group {weight.group}", "a multiple of 16")
        _same(weight.scale, (outputs, -(-inputs // weight.group)), torch.float16, x.device)
    elif isinstance(weight, Int8Weight):
        _same(weight.q, (outputs, inputs), torch.int8, x.device, rows_apart=True)
        _same(weight.scale, (outputs,), torch.float32, x.device)
    else:
        _same(weight, (outputs, inputs), x.dtype, x.device, rows_apart=True)
    if bias is not None:
        _same(bias, (outputs,), x.dtype, x.device)
    if norm is not None:
        _same(norm[0], (inputs,), x.dtype, x.device)
    if residual is not None:
        _same(residual, (x.shape[0], width), x.dtype, x.device, rows_apart=True)


def _check_lora(lora: StackedLora, x: Tensor, outputs: int) -> None:
    check(lora.a.dim() == 3 and 0 < lora.a.shape[1] <= 128, lora.a, "(adapters, rank, inputs), rank 1..128")
    adapters, rank = lora.a.shape[:2]
    _same(lora.a, (adapters, rank, x.shape[1]), x.dtype, x.device)
    _same(lora.b, (adapters, outputs, rank), x.dtype, x.device)
    _same(lora.scale, (adapters, rank), torch.float32, x.device)
    if lora.owner is not None:
        _same(lora.owner, (x.shape[0],), torch.int32, x.device)


def _same(
    given: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, rows_apart: bool = False
) -> None:
    """rows_apart: rows may lie anywhere, their elements side by side; else all is contiguous."""
    laid = given.is_contiguous() or (rows_apart and given.dim() == 2 and given.stride(-1) == 1)
    kind = str(dtype).removeprefix("torch.")
    layout = "with elements of a row side by side" if rows_apart else "contiguous"
    fits = given.shape == shape and given.dtype == dtype and given.device == device and laid
    check(fits, given, f"{kind} {shape} on {device}, {layout}")
