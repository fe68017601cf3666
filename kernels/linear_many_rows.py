"""Linear layer for many rows on tensor cores: y = activation(x W^T + bias + low-rank update) + residual.

Prefill, the vision tower and training; the same kernel multiplies by W instead of W^T for the gradient of x.
M rows, K inner width (summed over), N outputs. W is dense or quantized (kernels/weights.py) and is
dequantized in registers, tile by tile. Tiles of A are read beside those of W, so that T = x A^T is summed in
the same loop and T B^T added at the end; where that costs too much (large ranks, several adapters, dropout:
its random numbers would be made once per tile of outputs) T is made before, in kernels/low_rank.py.

Every row is summed over K in the same steps whatever M is; but M chooses tile sizes and, where there are too
few tiles to fill a GPU, in how many parts K is summed (launch_spec), which moves the last bits. `exact` takes
the tiles and parts of EXACT_ROWS rows for any number of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from owl_fast.kernels.dropout import Dropout, keep_mask
from owl_fast.kernels.launch import capability, check, jit, launch, tl
from owl_fast.kernels.linear_tiles import (
    ACTIVATIONS,
    LITTLE_SHARED,
    PROCESSORS,
    check_linear,
    finished,
    known_capability,
    weight_format,
    weight_tile,
    with_bias,
)
from owl_fast.kernels.low_rank import (
    EXPANDED,
    Branch,
    branch_of,
    check_lora,
    expanded,
    narrow_tile,
    padded_rank,
)
from owl_fast.kernels.rows import as_rows
from owl_fast.kernels.weights import StackedLora, Weight

_COMBINED = 1024  # outputs per program that adds parts


@jit
def _linear_kernel(
    x, weight, scale, bias, residual, y, t, a, b, rank_scale, owners, M, N, K, x_stride, weight_stride,
    scale_stride, residual_stride, t_stride, b_adapter_stride, b_out_stride, b_rank_stride, adapters, part,
    seed, threshold, dropout_scale, RANK: tl.constexpr, BLOCK_RANK: tl.constexpr, FORMAT: tl.constexpr,
    GROUP: tl.constexpr, TRANSPOSED: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, PARTS: tl.constexpr
):  # fmt: skip
    """A (BLOCK_M, BLOCK_N) tile of x W^T, finished; with PARTS > 1 its sum over `part` inner places in fp32.

    x (M, K), y (M, N), (M, N / 2) under swiglu or (PARTS, M, N). Under swiglu a tile takes rows of gate and
    of up by turns: two that belong together are neighbours, which one thread holds after a tensor core.
    """
    dtype: tl.constexpr = x.dtype.element_ty
    # Tiles that run together share rows of W and of x in the L2 cache: GROUP_M tiles of rows by all outputs.
    tile = tl.program_id(0)
    band_tiles = GROUP_M * tl.cdiv(N, BLOCK_N)
    band = tile // band_tiles * GROUP_M
    height = min(tl.cdiv(M, BLOCK_M) - band, GROUP_M)
    rows = (band + tile % band_tiles % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    first = tile % band_tiles // height * BLOCK_N
    outs = first + tl.arange(0, BLOCK_N)
    if ACTIVATION == "swiglu":
        outs = outs // 2 + outs % 2 * (N // 2)
    row_places = rows.to(tl.int64)[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    total_t = tl.zeros((BLOCK_M, BLOCK_RANK), tl.float32)
    its_rows = M  # of T, which the first part alone adds
    if PARTS > 1:
        its_rows = tl.where(tl.program_id(1) == 0, M, 0)
    if t is not None and TRANSPOSED:  # first, while there are registers for what is dropped
        total = expanded(
            total, t, b, owners, rows, outs, its_rows, N, t_stride, b_adapter_stride, b_out_stride,
            b_rank_stride, adapters, RANK, BLOCK_RANK
        )  # fmt: skip
        if threshold is not None:
            total = tl.where(keep_mask(seed, threshold, rows, first, BLOCK_N), total * dropout_scale, 0.0)
    start = tl.program_id(1) * part
    for k in range(start, min(start + part, K), BLOCK_K):
        inner = k + tl.arange(0, BLOCK_K)
        mask = (rows < M)[:, None] & (inner < K)[None, :]
        left = tl.load(x + row_places * x_stride + inner[None, :], mask=mask, other=0.0)
        if TRANSPOSED:
            right = weight_tile(
                weight, scale, inner, first, K, N, weight_stride, scale_stride, dtype, BLOCK_N, FORMAT, GROUP
            )
            if FORMAT == "int8":
                factor = tl.load(scale + inner, mask=inner < K, other=0.0)
                right = (right.to(tl.float32) * factor[:, None]).to(dtype)
        else:
            right = weight_tile(
                weight, scale, outs, k, N, K, weight_stride, scale_stride, dtype, BLOCK_K, FORMAT, GROUP
            )
            right = tl.trans(right)
        total = tl.dot(left, right, total, input_precision="ieee")
        if a is not None:
            total_t = tl.dot(
                left, narrow_tile(a, inner, K, 1, K, RANK, BLOCK_RANK), total_t, input_precision="ieee"
            )
    if FORMAT == "int8" and not TRANSPOSED:
        total *= tl.load(scale + outs, mask=outs < N, other=0.0)[None, :]
    if a is not None:
        ranks = tl.arange(0, BLOCK_RANK)
        total_t *= tl.load(rank_scale + ranks, mask=ranks < RANK, other=0.0)[None, :]
        right = tl.trans(narrow_tile(b, outs, N, b_out_stride, b_rank_stride, RANK, BLOCK_RANK))
        total = tl.dot(total_t.to(dtype), right, total, input_precision="ieee")
    if t is not None and not TRANSPOSED:
        total = expanded(
            total, t, b, owners, rows, outs, its_rows, N, t_stride, b_adapter_stride, b_out_stride,
            b_rank_stride, adapters, RANK, BLOCK_RANK
        )  # fmt: skip
    if PARTS > 1:
        places = (tl.program_id(1).to(tl.int64) * M + row_places) * N + outs[None, :]
        tl.store(y + places, total, mask=(rows < M)[:, None] & (outs < N)[None, :])
    else:
        total = with_bias(total, bias, outs, N)
        width, up = N, total
        if ACTIVATION == "swiglu":
            width = N // 2
            total, up = tl.split(tl.reshape(total, (BLOCK_M, BLOCK_N // 2, 2)))
            outs = first // 2 + tl.arange(0, BLOCK_N // 2)
        mask = (rows < M)[:, None] & (outs < width)[None, :]
        places = row_places * residual_stride + outs[None, :]
        total = finished(total, up, residual, places, mask, dtype, ACTIVATION)
        tl.store(y + row_places * width + outs[None, :], total, mask=mask)


@jit
def _combine_kernel(
    parts, bias, residual, y, M, N, residual_stride, ACTIVATION: tl.constexpr, PARTS: tl.constexpr,
    BLOCK: tl.constexpr
):  # fmt: skip
    """The sum of parts (PARTS, M, N) in their order, finished, into y (M, N or N / 2): a piece of one row."""
    width = N // 2 if ACTIVATION == "swiglu" else N
    row = tl.program_id(0).to(tl.int64)
    outs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = outs < width
    total = tl.zeros((BLOCK,), tl.float32)
    up = total
    for part in tl.static_range(PARTS):
        place = parts + (row + M.to(tl.int64) * part) * N + outs
        total += tl.load(place, mask=mask, other=0.0)
        if ACTIVATION == "swiglu":
            up += tl.load(place + width, mask=mask, other=0.0)
    total = with_bias(total[None, :], bias, outs, width)
    up = up[None, :]
    if ACTIVATION == "swiglu":
        up = with_bias(up, bias, outs + width, N)
    places = row * residual_stride + outs[None, :]
    total = finished(total, up, residual, places, mask[None, :], y.dtype.element_ty, ACTIVATION)
    tl.store(y + row * width + outs[None, :], total, mask=mask[None, :])


EXACT_ROWS = 64  # what a decode step needs most: parts enough to read W by all processors
_MANY = 512  # rows from which large tiles pay; not measured yet


def launch_spec(
    rows: int, outputs: int, inner: int, dtype: torch.dtype, capability: int, form: str, masked: bool = False
) -> dict[str, int]:
    """Tile sizes, warps, stages and PARTS, in how many K is summed. None of the constants is measured yet.

    form: "dense", "int8" or "int4"; masked: what is added has dropout. Shared memory holds num_stages tiles
    of x and W and, for a quantized W, one dequantized tile.
    """
    nearest = known_capability(capability)
    processors, small = PROCESSORS[nearest], nearest in LITTLE_SHARED
    if dtype == torch.float32:  # multiplied without tensor cores
        block = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 16, "num_warps": 4, "num_stages": 3}
    else:
        many = rows > _MANY
        # Two warpgroups of 64 x 256; unpacking a weight and making a mask take the registers for that.
        wide = many and nearest in (90, 100) and form == "dense" and not masked and outputs >= 256
        block_n = 64 if small and form != "dense" else 256 if wide else 128
        warps = 8 if many or nearest == 100 else 4
        block = {"BLOCK_M": 128 if many else 64, "BLOCK_N": block_n, "num_warps": warps}
        block["BLOCK_K"] = 32 if small and form != "int4" else 64  # 32 bytes of a row of W at least
        block["num_stages"] = 4 if not wide and (not small or (many and form == "dense")) else 3
    tiles = -(-rows // block["BLOCK_M"]) * -(-outputs // block["BLOCK_N"])
    parts = 1
    while parts < 4 and rows <= _MANY and 2 * parts * tiles <= 2 * processors and inner >= 2 * parts * 1024:
        parts *= 2  # two blocks fit a multiprocessor; a part shorter than 1024 is mostly filling the pipeline
    if nearest >= 100:  # unless told so, the assembler stops at 64 or 128 registers for occupancy, and spills
        block["maxnreg"] = 255
    return {**block, "GROUP_M": 8, "PARTS": parts}


def multiply(
    x: Tensor,
    weight: Weight,
    branch: Branch | None = None,
    *,
    transposed: bool = False,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    dropout: Dropout | None = None,
    exact: bool = False,
) -> Tensor:
    """x (M, K), weight (N, K) or, transposed, (K, N) -> (M, N), (M, N / 2) with swiglu; nothing is checked.

    residual: as the output. dropout, if transposed: of what the branch adds, by place in the output.
    """
    outputs = weight.shape[1] if transposed else weight.shape[0]
    (rows, inner), width = x.shape, outputs // 2 if activation == "swiglu" else outputs
    values, scale, scale_stride, settings = weight_format(weight)
    y = torch.empty(rows, width, dtype=x.dtype, device=x.device)
    tile_rows = EXACT_ROWS if exact else rows
    spec = launch_spec(
        tile_rows, outputs, inner, x.dtype, capability(x.device), settings["FORMAT"], dropout is not None
    )
    parts, wide = spec["PARTS"], y
    if parts > 1:
        wide = torch.empty(parts, rows, outputs, dtype=torch.float32, device=x.device)
    t, a, b, rank_scale, owners = (None,) * 5
    strides: tuple[int, ...] = (0, 0, 0, 0)
    rank, adapters = 0, 1
    if branch is not None:
        b, t, a, rank_scale, owners = branch
        strides = (0 if t is None else t.stride(0), *b.stride())
        rank, adapters = b.shape[2], b.shape[0]
    part = -(-inner // (parts * spec["BLOCK_K"])) * spec["BLOCK_K"]
    drop = (None, None, None) if dropout is None else (dropout.seed, dropout.threshold, dropout.scale)
    residual_stride = 0 if residual is None else residual.stride(0)
    grid = -(-rows // spec["BLOCK_M"]) * -(-outputs // spec["BLOCK_N"]), parts
    launch(
        _linear_kernel, grid, x, values, scale, bias, residual, wide, t, a, b, rank_scale, owners, rows,
        outputs, inner, x.stride(0), values.stride(0), scale_stride, residual_stride, *strides, adapters,
        part, *drop, RANK=rank, BLOCK_RANK=padded_rank(max(rank, 1), EXPANDED), TRANSPOSED=transposed,
        ACTIVATION=activation, **settings, **spec
    )  # fmt: skip
    if parts > 1:
        args = (wide, bias, residual, y, rows, outputs, residual_stride)
        grid = rows, -(-width // _COMBINED)
        launch(_combine_kernel, grid, *args, ACTIVATION=activation, PARTS=parts, BLOCK=_COMBINED, num_warps=4)
    return y


def linear_many_rows(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    lora: StackedLora | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    dropout: Dropout | None = None,
    exact: bool = False,
) -> Tensor:
    """x (..., K), weight (N, K), bias (N,) -> (..., N), without gradients; dropout of x before a.

    activation: "quick_gelu", or "swiglu" of a stacked [gate; up] -> (..., N / 2). residual: as the output.
    exact: a row's bits do not depend on the other rows.
    """
    check_linear(x, weight, bias)
    rows = as_rows(x)
    check(activation in ACTIVATIONS, f"activation={activation!r}", f"one of {ACTIVATIONS}")
    outputs = weight.shape[0]
    check(
        activation != "swiglu" or outputs % 2 == 0, f"swiglu of {outputs} outputs", "gate and up of one width"
    )
    width = outputs // 2 if activation == "swiglu" else outputs
    if lora is not None:
        check_lora(lora, x, outputs, len(rows))
    if residual is not None:
        fits = residual.shape == (*x.shape[:-1], width) and residual.dtype == x.dtype
        check(
            fits and residual.device == x.device,
            residual,
            f"{x.dtype} {(*x.shape[:-1], width)} on {x.device}",
        )
        residual = as_rows(residual)
    branch = None if lora is None else branch_of(rows, lora, dropout, exact=exact)
    y = multiply(rows, weight, branch, bias=bias, activation=activation, residual=residual, exact=exact)
    return y.view(*x.shape[:-1], width)
