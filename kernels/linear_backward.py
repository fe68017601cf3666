"""Gradients of a linear layer with low-rank updates, from x (M, K), dy (M, N) and what made the mask alone.

With x' = dropout(x), T = s x' A^T and dT = s dy B (both (M, R), made again in kernels/low_rank.py):

    dX = dy W + mask(dT A)   the forward kernel with W untransposed, straight from a quantized W
    dA = dT^T x'             dB = dy^T T
    dW = dy^T x              db = sum of the rows of dy

Sums over M are cut into parts that are written out and added in their order: the same bits in every run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from owl_fast.kernels.dropout import Dropout, kept
from owl_fast.kernels.launch import capability, jit, launch, tl
from owl_fast.kernels.linear_many_rows import PROCESSORS, multiply
from owl_fast.kernels.low_rank import Branch, shrink
from owl_fast.kernels.weights import StackedLora, Weight


@jit
def _outer_kernel(
    left, right, out, M, I, J, left_stride, right_stride, part, seed, threshold, dropout_scale,
    BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_M: tl.constexpr, GROUP_I: tl.constexpr
):  # fmt: skip
    """One tile of left^T dropout(right), summed over `part` rows: left (M, I), right (M, J) -> out (PARTS, I, J)."""
    tile = tl.program_id(0)
    band_tiles = GROUP_I * tl.cdiv(J, BLOCK_J)
    band = tile // band_tiles * GROUP_I
    height = min(tl.cdiv(I, BLOCK_I) - band, GROUP_I)
    i = (band + tile % band_tiles % height) * BLOCK_I + tl.arange(0, BLOCK_I)
    first = tile % band_tiles // height * BLOCK_J
    j = first + tl.arange(0, BLOCK_J)
    total = tl.zeros((BLOCK_I, BLOCK_J), tl.float32)
    start = tl.program_id(1) * part
    for m in range(start, min(start + part, M), BLOCK_M):
        rows = m + tl.arange(0, BLOCK_M)
        places = rows.to(tl.int64)[:, None]
        inside = (rows < M)[:, None]
        first_factor = tl.load(
            left + places * left_stride + i[None, :], mask=inside & (i < I)[None, :], other=0.0
        )
        second = tl.load(
            right + places * right_stride + j[None, :], mask=inside & (j < J)[None, :], other=0.0
        )
        if threshold is not None:
            second = tl.where(kept(seed, threshold, rows, first, BLOCK_J), second, 0.0)
        total = tl.dot(tl.trans(first_factor), second, total, input_precision="ieee")
    if threshold is not None:
        total *= dropout_scale
    places = (tl.program_id(1).to(tl.int64) * I + i[:, None]) * J + j[None, :]
    tl.store(out + places, total.to(out.dtype.element_ty), mask=(i < I)[:, None] & (j < J)[None, :])


def launch_spec(rows: int, i: int, j: int, dtype: torch.dtype, capability: int) -> dict[str, int]:
    """Tiles of the sum over rows; PARTS: of how many sums it is made. None of the constants is measured yet."""
    nearest = max((known for known in PROCESSORS if known <= capability), default=80)
    thin = i <= 64
    if dtype == torch.float32:  # multiplied without tensor cores
        block = {"BLOCK_I": 64, "BLOCK_J": 64, "BLOCK_M": 16, "num_warps": 4, "num_stages": 3}
    else:
        small = nearest in (86, 89, 120)  # 99 KB of shared memory for a block
        block = {
            "BLOCK_I": 128,
            "BLOCK_J": 128,
            "BLOCK_M": 32 if small else 64,
            "num_warps": 8,
            "num_stages": 3,
        }
    if thin:  # one tile high: right is read once
        block["BLOCK_I"] = max(16, 1 << (i - 1).bit_length())
        block["num_warps"] = 4
    tiles = -(-i // block["BLOCK_I"]) * -(-j // block["BLOCK_J"])
    # Two programs a multiprocessor, but each at least eight steps long.
    parts = max(1, min(2 * PROCESSORS[nearest] // tiles, rows // (8 * block["BLOCK_M"])))
    return {**block, "GROUP_I": 8, "PARTS": parts}


def outer(left: Tensor, right: Tensor, dtype: torch.dtype, dropout: Dropout | None = None) -> Tensor:
    """left (M, I), right (M, J) -> left^T dropout(right) (I, J) in `dtype`; the mask is by place in right."""
    (rows, i), j = left.shape, right.shape[1]
    spec = launch_spec(rows, i, j, left.dtype, capability(left.device))
    parts = spec.pop("PARTS")
    part = -(-rows // (parts * spec["BLOCK_M"])) * spec["BLOCK_M"]
    out = torch.empty(parts, i, j, dtype=dtype if parts == 1 else torch.float32, device=left.device)
    drop = (None, None, None) if dropout is None else (dropout.seed, dropout.threshold, dropout.scale)
    grid = -(-i // spec["BLOCK_I"]) * -(-j // spec["BLOCK_J"]), parts
    launch(
        _outer_kernel,
        grid,
        left,
        right,
        out,
        rows,
        i,
        j,
        left.stride(0),
        right.stride(0),
        part,
        *drop,
        **spec,
    )
    return out[0] if parts == 1 else out.sum(0).to(dtype)


def low_rank_gradients(
    x: Tensor, dy: Tensor, lora: StackedLora, dropout: Dropout | None, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """dA (R, K) and dB^T (R, N) in fp32, as wanted, of one adapter for all rows; and dT (M, R) for dX."""
    dt = shrink(dy, lora.b.transpose(1, 2), lora.scale, None)
    da = outer(dt, x, torch.float32, dropout) if wanted[0] else None
    db = outer(shrink(x, lora.a, lora.scale, None, dropout), dy, torch.float32) if wanted[1] else None
    return da, db, dt


def input_gradient(
    dy: Tensor, weight: Weight, lora: StackedLora | None, dt: Tensor | None, dropout: Dropout | None
) -> Tensor:
    """dy (M, N) -> dX (M, K)."""
    branch = None if lora is None or dt is None else Branch(lora.a.transpose(1, 2), dt)
    return multiply(dy, weight, branch, transposed=True, dropout=dropout)
