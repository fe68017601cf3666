"""The kernel of linear_few_rows for 1..4 rows, bound by reading W: no tensor cores, no shared memory.

A program owns a few rows of W and all of K, which its threads share: each multiplies 8 neighbouring k of
every row of W in registers (16 bytes of bf16, 8 of int8, 4 of int4) and adds up what it has seen; threads
meet once, at the end. So loads are whole cache lines, tiles go from memory straight into the sums, and the
next tile is under way while one is used. The order of summation is a function of K alone.

Shapes: x (M, K), W (N, K), A (adapters, R, K), B (adapters, N, R) -> y (M, N), or (M, N / 2) after SwiGLU.
"""

from __future__ import annotations

from owl_fast.kernels.launch import jit, tl
from owl_fast.kernels.linear_row_parts import finish, load_gain, load_inputs, output_rows


@jit
def _fetch(
    weight, scales, n, stride, turn,
    INPUTS: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, WORDS: tl.constexpr, KEPT: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Rows n (1, BLOCK_N, 1) of the turn-th BLOCK_K columns, as int32 words, and int4's scales: one a word.

    The hint gives each thread 8 neighbouring k whatever their width, which are those of x that it has: tiles
    of x and W then meet without passing through shared memory. WORDS: W is stored so that words can be
    loaded.
    """
    PER: tl.constexpr = 32 // BITS
    policy: tl.constexpr = "evict_last" if KEPT else "evict_first"
    row = n.to(tl.int64) * stride
    word = turn * (BLOCK_K // PER) + tl.max_contiguous(tl.arange(0, BLOCK_K // PER), 8 // PER)[None, None, :]
    inside = word < (INPUTS + PER - 1) // PER
    if WORDS:
        tile = tl.load(weight + row + word, mask=inside, other=0, eviction_policy=policy)
    else:
        items: tl.constexpr = 2 if BITS == 16 else 4  # halves or bytes of a word
        tile = tl.zeros((1, n.shape[1], BLOCK_K // PER), tl.int32)
        for i in tl.static_range(items):
            item = word * items + i
            part = tl.load(weight + row + item, mask=item * (PER // items) < INPUTS, other=0)
            tile |= (part.to(tl.int32) & ((1 << (32 // items)) - 1)) << (32 // items * i)
    if BITS == 4:
        groups: tl.constexpr = (INPUTS + GROUP - 1) // GROUP
        group = n.to(tl.int64) * groups + word * 8 // GROUP
        return tile, tl.load(scales + group, mask=inside, other=0.0)
    else:
        return tile, turn


@jit
def _whole(words, BITS: tl.constexpr, WHICH: tl.constexpr):
    """The WHICH-th signed integer of each word in fp32, exactly, times 2^place, its place in a half word.

    It becomes low bits of the fraction of an fp32, as an unsigned number (int8 words come with each top bit
    turned): a mask with an or, and a subtraction, where converting integers runs at a fraction of that rate.
    """
    place: tl.constexpr = BITS * WHICH % 16
    if BITS * WHICH >= 16:
        words = words >> 16
    bits = (words & (((1 << BITS) - 1) << place)) | 0x4B000000
    return bits.to(tl.float32, bitcast=True) - (2.0**23 + 2.0 ** (BITS - 1 + place))


@jit
def _half(words, HIGH: tl.constexpr, DTYPE: tl.constexpr):
    """The lower or higher half of each word, a number of DTYPE, in fp32."""
    if tl.bfloat16 == DTYPE:
        return ((words & -65536) if HIGH else (words << 16)).to(tl.float32, bitcast=True)
    else:
        return (words >> (16 if HIGH else 0)).to(tl.int16).to(DTYPE, bitcast=True).to(tl.float32)


@jit
def _eighths(tile):
    """(m, n, 8 c) -> eight of (m, n, c), the i-th holding places i, 8 + i, ..: all in one thread."""
    even, odd = tl.split(tile.reshape(tile.shape[0], tile.shape[1], tile.shape[2] // 2, 2))
    t0, t4, t2, t6 = _quarters(even)
    t1, t5, t3, t7 = _quarters(odd)
    return t0, t1, t2, t3, t4, t5, t6, t7


@jit
def _quarters(tile):
    """(m, n, 4 c) -> those of places 0, 2, 1 and 3."""
    even, odd = tl.split(tile.reshape(tile.shape[0], tile.shape[1], tile.shape[2] // 2, 2))
    t0, t2 = tl.split(even.reshape(tile.shape[0], tile.shape[1], tile.shape[2] // 4, 2))
    t1, t3 = tl.split(odd.reshape(tile.shape[0], tile.shape[1], tile.shape[2] // 4, 2))
    return t0, t2, t1, t3


@jit
def _eight_weights(tile, BITS: tl.constexpr, DTYPE: tl.constexpr):
    """_eighths of the numbers in the words of _fetch, in fp32; integers times 2^place, as from _whole."""
    if BITS == 4:
        return (
            _whole(tile, 4, 0), _whole(tile, 4, 1), _whole(tile, 4, 2), _whole(tile, 4, 3),
            _whole(tile, 4, 4), _whole(tile, 4, 5), _whole(tile, 4, 6), _whole(tile, 4, 7),
        )  # fmt: skip
    elif BITS == 8:
        turned = tile ^ -0x7F7F7F80
        a, b = tl.split(turned.reshape(tile.shape[0], tile.shape[1], tile.shape[2] // 2, 2))
        return (
            _whole(a, 8, 0), _whole(a, 8, 1), _whole(a, 8, 2), _whole(a, 8, 3), _whole(b, 8, 0),
            _whole(b, 8, 1), _whole(b, 8, 2), _whole(b, 8, 3),
        )  # fmt: skip
    elif BITS == 16:
        a, c, b, d = _quarters(tile)
        return (
            _half(a, False, DTYPE), _half(a, True, DTYPE), _half(b, False, DTYPE), _half(b, True, DTYPE),
            _half(c, False, DTYPE), _half(c, True, DTYPE), _half(d, False, DTYPE), _half(d, True, DTYPE),
        )  # fmt: skip
    else:
        return _eighths(tile.to(tl.float32, bitcast=True))


@jit
def _sums(
    tile, tile_scale, x, norm_weight, norm_scale, weight, scales, m, n, x_stride, stride, rows, inputs,
    INPUTS: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, WORDS: tl.constexpr, KEPT: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Rows m (BLOCK_M, 1, 1) of x times n (1, BLOCK_N, 1) of W -> (BLOCK_M, BLOCK_N). tile: W's first."""
    total = tl.zeros((m.shape[0], n.shape[1], BLOCK_K // 8), tl.float32)
    for start in range(0, inputs, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)[None, None, :]
        gain = load_gain(norm_weight, k, INPUTS)
        values = load_inputs(x, gain, norm_scale, x_stride, m, k, rows, INPUTS)
        ahead, ahead_scale = _fetch(
            weight, scales, n, stride, start // BLOCK_K + 1, INPUTS, BITS, GROUP, WORDS, KEPT, BLOCK_K
        )
        left = _eighths(values.to(tl.float32))
        right = _eight_weights(tile, BITS, x.dtype.element_ty)
        part = tl.zeros_like(total) if BITS == 4 else total
        for i in tl.static_range(8):
            part += left[i] * (1.0 / 2 ** (BITS * i % 16)) * right[i]
        total = total + part * tile_scale.to(tl.float32) if BITS == 4 else part
        tile = ahead
        tile_scale = ahead_scale
    return tl.sum(total, 2)


@jit
def _rms_scale(x, m, x_stride, rows, inputs, eps, INPUTS: tl.constexpr, BLOCK_K: tl.constexpr):
    """1 / rms of rows m (BLOCK_M, 1, 1) of x, in that shape."""
    total = tl.zeros((m.shape[0], 1, BLOCK_K), tl.float32)
    for start in range(0, inputs, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)[None, None, :]
        values = load_inputs(x, None, None, x_stride, m, k, rows, INPUTS).to(tl.float32)
        total += values * values
    return 1.0 / tl.sqrt(tl.sum(total, 2)[:, :, None] / INPUTS + eps)


@jit
def _shrink(
    x, norm_weight, norm_scale, a, lora_scale, m, mine, adapters, x_stride, a_stride, rows, inputs,
    INPUTS: tl.constexpr, BITS: tl.constexpr, WORDS: tl.constexpr, RANK: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """((x A^T) scale) of rows m (BLOCK_M, 1, 1), each with its adapter mine (BLOCK_M,) -> (BLOCK_M, BLOCK_R).

    Adapters that none of the rows has are not read; 8 rows of A at a time are treated as rows of W.
    """
    eight = tl.arange(0, 8)
    chunks = tl.arange(0, BLOCK_R // 8)[None, :, None]
    found = tl.zeros((BLOCK_M, BLOCK_R // 8, 8), tl.float32)
    for i in range(0, adapters):
        if tl.max((mine == i).to(tl.int32)) > 0:
            own = a + tl.cast(i, tl.int64) * a_stride * RANK
            for r in range(0, RANK, 8):
                n = tl.minimum(r + eight, RANK - 1)
                tile, tile_scale = _fetch(
                    own, None, n[None, :, None], a_stride, 0, INPUTS, BITS, 1, WORDS, True, BLOCK_K
                )
                sums = _sums(
                    tile, tile_scale, x, norm_weight, norm_scale, own, None, m, n[None, :, None], x_stride,
                    a_stride, rows, inputs, INPUTS, BITS, 1, WORDS, True, BLOCK_K,
                )  # fmt: skip
                scale = tl.load(lora_scale + i * RANK + n, mask=r + eight < RANK, other=0.0)
                here = (mine == i)[:, None, None] & (chunks == r // 8)
                found = tl.where(here, (sums * scale[None, :])[:, None, :], found)
    return found.reshape(BLOCK_M, BLOCK_R)


@jit
def linear_four_rows_kernel(
    x, norm_weight, weight, scales, bias, a, b, lora_scale, owners, residual, y, x_stride, weight_stride,
    a_stride, residual_stride, rows, inputs, outputs, adapters, blocks, eps,
    INPUTS: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, WORDS: tl.constexpr,
    A_BITS: tl.constexpr, A_WORDS: tl.constexpr, RANK: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M rows of x, and one block of BLOCK_N rows of W; with adapters every P-th block."""
    parts = tl.cdiv(rows, BLOCK_M)  # neighbours read the same rows of W at the same time: once from memory
    programs = tl.num_programs(0) // parts
    first = tl.program_id(0) // parts
    lane = (tl.program_id(0) % parts) * BLOCK_M + tl.arange(0, BLOCK_M)
    m = lane[:, None, None]
    if a is None:  # before anything that has to be waited for
        n = output_rows(first, outputs, ACTIVATION, BLOCK_N)
        tile, tile_scale = _fetch(
            weight, scales, n[None, :, None], weight_stride, 0, INPUTS, BITS, GROUP, WORDS, False, BLOCK_K
        )
    norm_scale = None
    if norm_weight is not None:
        norm_scale = _rms_scale(x, m, x_stride, rows, inputs, eps, INPUTS, BLOCK_K)
    if a is not None:
        mine = tl.zeros((BLOCK_M,), tl.int32)
        if owners is not None:
            mine = tl.load(owners + lane, mask=lane < rows, other=-1)
        low = _shrink(
            x, norm_weight, norm_scale, a, lora_scale, m, mine, adapters, x_stride, a_stride, rows, inputs,
            INPUTS, A_BITS, A_WORDS, RANK, BLOCK_M, BLOCK_K, BLOCK_R,
        )  # fmt: skip
    for block in range(first, blocks, programs):
        n = output_rows(block, outputs, ACTIVATION, BLOCK_N)
        if a is not None:
            tile, tile_scale = _fetch(
                weight, scales, n[None, :, None], weight_stride, 0, INPUTS, BITS, GROUP, WORDS, False, BLOCK_K
            )
        sums = _sums(
            tile, tile_scale, x, norm_weight, norm_scale, weight, scales, m, n[None, :, None], x_stride,
            weight_stride, rows, inputs, INPUTS, BITS, GROUP, WORDS, False, BLOCK_K,
        )  # fmt: skip
        if BITS == 8:
            sums *= tl.load(scales + n)[None, :]
        if a is not None:
            r = tl.arange(0, BLOCK_R)[None, None, :]
            own = (mine.to(tl.int64) * outputs)[:, None, None] + n[None, :, None]
            inside = (mine >= 0)[:, None, None] & (mine < adapters)[:, None, None] & (r < RANK)
            wide = tl.load(b + own * RANK + r, mask=inside, other=0.0).to(tl.float32)
            sums += tl.sum(low[:, None, :] * wide, 2)
        finish(
            sums, block, lane, bias, residual, y, residual_stride, rows, outputs, ACTIVATION, BLOCK_M,
            BLOCK_N,
        )  # fmt: skip
