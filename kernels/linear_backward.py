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

from owl_fast.kernels.dropout import Dropout, keep_mask
from owl_fast.kernels.launch import capability, jit, launch, power_of_two, tl
from owl_fast.kernels.linear_many_rows import multiply
from owl_fast.kernels.linear_tiles import LITTLE_SHARED, PROCESSORS, known_capability
from owl_fast.kernels.low_rank import Branch, shrink
from owl_fast.kernels.weights import StackedLora, Weight


@jit
def _outer_kernel(
    left, right, out, M, P, Q, left_stride, right_stride, part, seed, threshold, dropout_scale,
    BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_M: tl.constexpr, GROUP_P: tl.constexpr
):  # fmt: skip
    """A tile of left^T dropout(right) over `part` rows: left (M, P), right (M, Q) -> out (PARTS, P, Q)."""
    tile = tl.program_id(0)
    band_tiles = GROUP_P * tl.cdiv(Q, BLOCK_Q)
    band = tile // band_tiles * GROUP_P
    height = min(tl.cdiv(P, BLOCK_P) - band, GROUP_P)
    p = (band + tile % band_tiles % height) * BLOCK_P + tl.arange(0, BLOCK_P)
    first = tile % band_tiles // height * BLOCK_Q
    q = first + tl.arange(0, BLOCK_Q)
    total = tl.zeros((BLOCK_P, BLOCK_Q), tl.float32)
    start = tl.program_id(1) * part
    for m in range(start, min(start + part, M), BLOCK_M):
        rows = m + tl.arange(0, BLOCK_M)
        places = rows.to(tl.int64)[:, None]
        inside = (rows < M)[:, None]
        first_factor = tl.load(
            left + places * left_stride + p[None, :], mask=inside & (p < P)[None, :], other=0.0
        )
        second = tl.load(
            right + places * right_stride + q[None, :], mask=inside & (q < Q)[None, :], other=0.0
        )
        if threshold is not None:
            second = tl.where(keep_mask(seed, threshold, rows, first, BLOCK_Q), second, 0.0)
        total = tl.dot(tl.trans(first_factor), second, total, input_precision="ieee")
    if threshold is not None:
        total *= dropout_scale
    places = (tl.program_id(1).to(tl.int64) * P + p[:, None]) * Q + q[None, :]
    tl.store(out + places, total.to(out.dtype.element_ty), mask=(p < P)[:, None] & (q < Q)[None, :])


def launch_spec(rows: int, p: int, q: int, dtype: torch.dtype, capability: int) -> dict[str, int]:
    """Tiles of the sum over rows; PARTS: of how many sums it is made. No constant is measured yet."""
    nearest = known_capability(capability)
    thin = p <= 64
    if dtype == torch.float32:  # multiplied without tensor cores
        block = {"BLOCK_P": 64, "BLOCK_Q": 64, "BLOCK_M": 16, "num_warps": 4, "num_stages": 3}
    else:
        rows_at_once = 32 if nearest in LITTLE_SHARED else 64
        block = {"BLOCK_P": 128, "BLOCK_Q": 128, "BLOCK_M": rows_at_once, "num_warps": 8, "num_stages": 3}
    if thin:  # one tile high: right is read once
        block["BLOCK_P"] = max(16, power_of_two(p))
        block["num_warps"] = 4
    tiles = -(-p // block["BLOCK_P"]) * -(-q // block["BLOCK_Q"])
    # Two programs a multiprocessor, but each at least eight steps long.
    parts = max(1, min(2 * PROCESSORS[nearest] // tiles, rows // (8 * block["BLOCK_M"])))
    return {**block, "GROUP_P": 8, "PARTS": parts}


def outer(left: Tensor, right: Tensor, dtype: torch.dtype, dropout: Dropout | None = None) -> Tensor:
    """left (M, P), right (M, Q) -> left^T dropout(right) (P, Q) in `dtype`; the mask is by place in right."""
    (rows, p), q = left.shape, right.shape[1]
    spec = launch_spec(rows, p, q, left.dtype, capability(left.device))
    parts = spec.pop("PARTS")
    part = -(-rows // (parts * spec["BLOCK_M"])) * spec["BLOCK_M"]
    out = torch.empty(parts, p, q, dtype=dtype if parts == 1 else torch.float32, device=left.device)
    drop = (None, None, None) if dropout is None else (dropout.seed, dropout.threshold, dropout.scale)
    grid = -(-p // spec["BLOCK_P"]) * -(-q // spec["BLOCK_Q"]), parts
    args = (left, right, out, rows, p, q, left.stride(0), right.stride(0), part, *drop)
    launch(_outer_kernel, grid, *args, **spec)
    return out[0] if parts == 1 else out.sum(0).to(dtype)


def low_rank_gradients(
    x: Tensor | None, dy: Tensor, lora: StackedLora, dropout: Dropout | None, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """dA (R, K) and dB^T (R, N) in fp32, as wanted, of one adapter for all rows; and dT (M, R) for dX. x is
    needed for the former two."""
    dt = shrink(dy, lora.b.transpose(1, 2), lora.scale, None)
    if x is None:
        return None, None, dt
    da = outer(dt, x, torch.float32, dropout) if wanted[0] else None
    db = outer(shrink(x, lora.a, lora.scale, None, dropout), dy, torch.float32) if wanted[1] else None
    return da, db, dt


def input_gradient(
    dy: Tensor, weight: Weight, lora: StackedLora | None, dt: Tensor | None, dropout: Dropout | None
) -> Tensor:
    """dy (M, N) -> dX (M, K)."""
    branch = None if lora is None or dt is None else Branch(lora.a.transpose(1, 2), dt)
    return multiply(dy, weight, branch, transposed=True, dropout=dropout)
