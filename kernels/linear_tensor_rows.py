"""The kernel of linear_few_rows for 5 rows and more of bf16 or fp16: tensor cores, still bound by reading W.

Beyond 4 rows, multiplying in registers costs more than reading (int4 on an H200: 8.6 T weights a second come,
and each wants 2 instructions and one per row, of 29 T). A program owns BLOCK_M rows of x and BLOCK_N of W,
whose tiles come through a ring of asynchronous copies in shared memory, so what is under way takes no
registers. Rows that are missing are zero: what a row gets is the same for any number of rows and any
neighbours, in a tile of 16 rows as in one of 32. Tiles of 64 would be multiplied by other instructions on
sm_90 and sm_100 (wgmma, tcgen05), which need not add up alike; so more than 32 rows are several tiles.

Shapes: x (M, K), W (N, K), A (adapters, R, K), B (adapters, N, R) -> y (M, N), or (M, N / 2) after SwiGLU.
"""

from __future__ import annotations

from owl_fast.kernels.launch import jit, tl
from owl_fast.kernels.linear_row_parts import finish, load_gain, load_inputs, output_rows


@jit
def _exactly(unsigned, LESS: tl.constexpr, DTYPE: tl.constexpr):
    """Integers 0..255, less LESS, in DTYPE: as low bits of the fraction of an fp32: beats converting."""
    bits = unsigned.to(tl.int32) | 0x4B000000
    return (bits.to(tl.float32, bitcast=True) - (2.0**23 + LESS)).to(DTYPE)


@jit
def _sums(
    x, norm_weight, norm_scale, weight, scales, m, n, x_stride, stride, rows, inputs,
    INPUTS: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Rows m (BLOCK_M,) of x times n (BLOCK_N,) of W -> (BLOCK_M, BLOCK_N), without int8's scales.

    int4: BLOCK_K divides GROUP.
    """
    row = n.to(tl.int64)[None, :] * stride
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if BITS == 4:
        groups: tl.constexpr = (INPUTS + GROUP - 1) // GROUP
        places = scales + n.to(tl.int64) * groups
        scale = tl.load(places)
        odd_total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    # What no copy brings ahead is loaded a turn ahead: scales, and the norm's weight.
    gain = load_gain(norm_weight, tl.arange(0, BLOCK_K)[None, :], INPUTS)
    for start in tl.range(0, inputs, BLOCK_K, num_stages=STAGES):
        k = start + tl.arange(0, BLOCK_K)
        values = load_inputs(x, gain, norm_scale, x_stride, m[:, None], k[None, :], rows, INPUTS)
        if norm_weight is not None:
            gain = load_gain(norm_weight, BLOCK_K + k[None, :], INPUTS)
        if BITS == 4:
            byte = tl.multiple_of(start // 2, BLOCK_K // 2) + tl.arange(0, BLOCK_K // 2)[:, None]
            pairs = tl.load(
                weight + row + byte, mask=byte < (INPUTS + 1) // 2, other=0, eviction_policy="evict_first"
            )
            even, odd = tl.split(values.reshape(BLOCK_M, BLOCK_K // 2, 2))
            low = _exactly(pairs & 15, 8, values.dtype)
            high = _exactly(pairs >> 4, 8, values.dtype)
            # Two sums that know nothing of each other: Triton copies ahead only what one chain of dots needs.
            total += tl.dot(even, low) * scale.to(tl.float32)[None, :]
            odd_total += tl.dot(odd, high) * scale.to(tl.float32)[None, :]
            group = (start + BLOCK_K) // GROUP
            scale = tl.load(places + group, mask=group + n * 0 < groups, other=0.0)
        else:
            inside = k[:, None] < INPUTS
            tile = tl.load(weight + row + k[:, None], mask=inside, other=0, eviction_policy="evict_first")
            if BITS == 8:
                tile = _exactly(tile.to(tl.int32) + 128, 128, values.dtype)
            total = tl.dot(values, tile, total)
    if BITS == 4:
        total += odd_total
    return total


@jit
def _rms_scale(
    x, m, x_stride, rows, inputs, eps,
    INPUTS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """1 / rms of rows m (BLOCK_M,): (BLOCK_M, 1)."""
    total = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    for start in range(0, inputs, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)[None, :]
        values = load_inputs(x, None, None, x_stride, m[:, None], k, rows, INPUTS).to(tl.float32)
        total += values * values
    return 1.0 / tl.sqrt(tl.sum(total, 1)[:, None] / INPUTS + eps)


@jit
def _shrink(
    x, norm_weight, norm_scale, a, lora_scale, m, mine, adapters, x_stride, a_stride, rows, inputs,
    INPUTS: tl.constexpr, RANK: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_A: tl.constexpr,
    BLOCK_R: tl.constexpr,
):  # fmt: skip
    """((x A^T) scale) of rows m, each with its adapter mine (BLOCK_M,) -> (BLOCK_M, BLOCK_R).

    Adapters that none of the rows has are not read.
    """
    r = tl.arange(0, BLOCK_R)
    low = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
    for i in range(0, adapters):
        if tl.max((mine == i).to(tl.int32)) > 0:
            own = a + tl.cast(i, tl.int64) * a_stride * RANK
            sums = _sums(
                x, norm_weight, norm_scale, own, None, m, tl.minimum(r, RANK - 1), x_stride, a_stride,
                rows, inputs, INPUTS, 16, 1, BLOCK_M, BLOCK_R, BLOCK_A, 3,
            )  # fmt: skip
            scale = tl.load(lora_scale + i * RANK + r, mask=r < RANK, other=0.0)
            low = tl.where((mine == i)[:, None], sums * scale[None, :], low)
    return low


@jit
def linear_tensor_rows_kernel(
    x, norm_weight, weight, scales, bias, a, b, lora_scale, owners, residual, y, x_stride, weight_stride,
    a_stride, residual_stride, rows, inputs, outputs, adapters, blocks, eps,
    INPUTS: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, RANK: tl.constexpr,
    ACTIVATION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_A: tl.constexpr, BLOCK_R: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M rows of x, and one block of BLOCK_N rows of W; with adapters every P-th block."""
    parts = tl.cdiv(rows, BLOCK_M)  # neighbours read the same rows of W at the same time: once from memory
    m = (tl.program_id(0) % parts) * BLOCK_M + tl.arange(0, BLOCK_M)
    norm_scale = None
    if norm_weight is not None:
        norm_scale = _rms_scale(x, m, x_stride, rows, inputs, eps, INPUTS, BLOCK_M, 256)
    r = tl.arange(0, BLOCK_R)
    if a is not None:
        mine = tl.zeros((BLOCK_M,), tl.int32)
        if owners is not None:
            mine = tl.load(owners + m, mask=m < rows, other=-1)
        low = _shrink(
            x, norm_weight, norm_scale, a, lora_scale, m, mine, adapters, x_stride, a_stride, rows, inputs,
            INPUTS, RANK, BLOCK_M, BLOCK_A, BLOCK_R,
        )  # fmt: skip
    for block in range(tl.program_id(0) // parts, blocks, tl.num_programs(0) // parts):
        n = output_rows(block, outputs, ACTIVATION, BLOCK_N)
        sums = _sums(
            x, norm_weight, norm_scale, weight, scales, m, n, x_stride, weight_stride, rows, inputs, INPUTS,
            BITS, GROUP, BLOCK_M, BLOCK_N, BLOCK_K, STAGES,
        )  # fmt: skip
        if BITS == 8:
            sums *= tl.load(scales + n)[None, :]
        if a is not None:
            for i in range(0, adapters):
                if tl.max((mine == i).to(tl.int32)) > 0:
                    place = (tl.cast(i, tl.int64) * outputs + n)[None, :] * RANK + r[:, None]
                    wide = tl.load(b + place, mask=(r < RANK)[:, None], other=0.0)
                    update = tl.dot(low.to(wide.dtype), wide)
                    sums += tl.where((mine == i)[:, None], update, 0.0)
        finish(
            sums, block, m, bias, residual, y, residual_stride, rows, outputs, ACTIVATION, BLOCK_M, BLOCK_N,
        )  # fmt: skip
