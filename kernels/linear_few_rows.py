"""Linear layer on 1..16 rows (decoding), and what surrounds it, in one launch bound by reading the weights.

    y = act(rms_norm(x) W^T + b + ((x A^T) scale) B^T) + residual

A program owns a few rows of W and all of K, which its threads share: each multiplies 8 neighbouring k of every
row of W in registers (16 bytes of bf16, 8 of int8, 4 of int4) and adds up what it has seen; threads meet once, at
the end. So loads are whole cache lines, no shared memory stands between them and the sums, and the next tile is
under way while one is used. Order of summation: a function of K alone. A row's bits depend neither on the other
rows nor on their number, nor on whether there are adapters.

Shapes: x (M, K), W (N, K), A (adapters, R, K), B (adapters, N, R) -> y (M, N), or (M, N / 2) after SwiGLU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from owl_fast.kernels.launch import check, jit, launch, tl
from owl_fast.kernels.linear_row_parts import finish, load_inputs, output_rows
from owl_fast.kernels.linear_sixteen_rows import linear_sixteen_rows_kernel
from owl_fast.kernels.weights import Int4Weight, Int8Weight, StackedLora, Weight

MOST_ROWS = 16
ROWS = 4  # of one program: more would need more registers than leave room for loads in flight
PROGRAMS = 264  # at most, with adapters: two on each of an H200's 132 multiprocessors; not measured yet
_ACTIVATIONS = (None, "swiglu", "quick_gelu")
_GPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@jit
def _fetch(
    weight,
    scales,
    n,
    stride,
    turn,
    INPUTS: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    WORDS: tl.constexpr,
    KEPT: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Rows n (1, BLOCK_N, 1) of W in its turn-th BLOCK_K columns, as int32 words; int4: one word per scale, and the scales.

    The hint gives each thread 8 neighbouring k whatever their width, which are those of x that it has: tiles of
    x and W then meet without passing through shared memory. WORDS: W is stored so that words can be loaded.
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
def _whole(words, BITS: tl.constexpr, I: tl.constexpr):
    """The I-th signed integer of each word in fp32, exactly, times 2^place, its place in a half word.

    It becomes low bits of the fraction of an fp32, as an unsigned number (int8 words come with each top bit turned):
    a mask with an or, and a subtraction, where converting integers runs at a fraction of that rate.
    """
    place: tl.constexpr = BITS * I % 16
    if BITS * I >= 16:
        words = words >> 16
    bits = (words & (((1 << BITS) - 1) << place)) | 0x4B000000
    return bits.to(tl.float32, bitcast=True) - (2.0**23 + 2.0 ** (BITS - 1 + place))


@jit
def _half(words, HIGH: tl.constexpr, DTYPE: tl.constexpr):
    """The lower or higher half of each word, a number of DTYPE, in fp32."""
    if DTYPE == tl.bfloat16:
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
    """As _eighths, of the numbers in the words that _fetch gave, in fp32; integers times 2^place, as from _whole."""
    if BITS == 4:
        return (
            _whole(tile, 4, 0),
            _whole(tile, 4, 1),
            _whole(tile, 4, 2),
            _whole(tile, 4, 3),
            _whole(tile, 4, 4),
            _whole(tile, 4, 5),
            _whole(tile, 4, 6),
            _whole(tile, 4, 7),
        )
    elif BITS == 8:
        turned = tile ^ -0x7F7F7F80
        a, b = tl.split(turned.reshape(tile.shape[0], tile.shape[1], tile.shape[2] // 2, 2))
        return (
            _whole(a, 8, 0),
            _whole(a, 8, 1),
            _whole(a, 8, 2),
            _whole(a, 8, 3),
            _whole(b, 8, 0),
            _whole(b, 8, 1),
            _whole(b, 8, 2),
            _whole(b, 8, 3),
        )
    elif BITS == 16:
        a, c, b, d = _quarters(tile)
        return (
            _half(a, False, DTYPE),
            _half(a, True, DTYPE),
            _half(b, False, DTYPE),
            _half(b, True, DTYPE),
            _half(c, False, DTYPE),
            _half(c, True, DTYPE),
            _half(d, False, DTYPE),
            _half(d, True, DTYPE),
        )
    else:
        return _eighths(tile.to(tl.float32, bitcast=True))


@jit
def _sums(
    tile,
    tile_scale,
    x,
    norm_weight,
    norm_scale,
    weight,
    scales,
    m,
    n,
    x_stride,
    stride,
    rows,
    inputs,
    INPUTS: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    WORDS: tl.constexpr,
    KEPT: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Rows m (BLOCK_M, 1, 1) of x times rows n (1, BLOCK_N, 1) of W -> (BLOCK_M, BLOCK_N). tile: W's first."""
    total = tl.zeros((m.shape[0], n.shape[1], BLOCK_K // 8), tl.float32)
    for start in range(0, inputs, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)[None, None, :]
        values = load_inputs(x, norm_weight, norm_scale, x_stride, m, k, rows, INPUTS)
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
    x,
    norm_weight,
    norm_scale,
    a,
    lora_scale,
    m,
    mine,
    adapters,
    x_stride,
    a_stride,
    rows,
    inputs,
    INPUTS: tl.constexpr,
    BITS: tl.constexpr,
    WORDS: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
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
                    tile,
                    tile_scale,
                    x,
                    norm_weight,
                    norm_scale,
                    own,
                    None,
                    m,
                    n[None, :, None],
                    x_stride,
                    a_stride,
                    rows,
                    inputs,
                    INPUTS,
                    BITS,
                    1,
                    WORDS,
                    True,
                    BLOCK_K,
                )
                scale = tl.load(lora_scale + i * RANK + n, mask=r + eight < RANK, other=0.0)
                here = (mine == i)[:, None, None] & (chunks == r // 8)
                found = tl.where(here, (sums * scale[None, :])[:, None, :], found)
    return found.reshape(BLOCK_M, BLOCK_R)


@jit
def _linear_few_rows_kernel(
    x,
    norm_weight,
    weight,
    scales,
    bias,
    a,
    b,
    lora_scale,
    index,
    residual,
    y,
    x_stride,
    weight_stride,
    a_stride,
    residual_stride,
    rows,
    inputs,
    outputs,
    adapters,
    blocks,
    eps,
    INPUTS: tl.constexpr,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    WORDS: tl.constexpr,
    A_BITS: tl.constexpr,
    A_WORDS: tl.constexpr,
    RANK: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """One program: BLOCK_M rows of x, and every so-manieth block of BLOCK_N rows of W (one, without adapters)."""
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
        if index is not None:
            mine = tl.load(index + lane, mask=lane < rows, other=-1)
        low = _shrink(
            x,
            norm_weight,
            norm_scale,
            a,
            lora_scale,
            m,
            mine,
            adapters,
            x_stride,
            a_stride,
            rows,
            inputs,
            INPUTS,
            A_BITS,
            A_WORDS,
            RANK,
            BLOCK_M,
            BLOCK_K,
            BLOCK_R,
        )
    for block in range(first, blocks, programs):
        n = output_rows(block, outputs, ACTIVATION, BLOCK_N)
        if a is not None:
            tile, tile_scale = _fetch(
                weight, scales, n[None, :, None], weight_stride, 0, INPUTS, BITS, GROUP, WORDS, False, BLOCK_K
            )
        sums = _sums(
            tile,
            tile_scale,
            x,
            norm_weight,
            norm_scale,
            weight,
            scales,
            m,
            n[None, :, None],
            x_stride,
            weight_stride,
            rows,
            inputs,
            INPUTS,
            BITS,
            GROUP,
            WORDS,
            False,
            BLOCK_K,
        )
        if BITS == 8:
            sums *= tl.load(scales + n)[None, :]
        if a is not None:
            r = tl.arange(0, BLOCK_R)[None, None, :]
            own = (mine.to(tl.int64) * outputs)[:, None, None] + n[None, :, None]
            inside = (mine >= 0)[:, None, None] & (mine < adapters)[:, None, None] & (r < RANK)
            wide = tl.load(b + own * RANK + r, mask=inside, other=0.0).to(tl.float32)
            sums += tl.sum(low[:, None, :] * wide, 2)
        finish(
            sums,
            block,
            lane,
            bias,
            residual,
            y,
            residual_stride,
            rows,
            outputs,
            ACTIVATION,
            BLOCK_M,
            BLOCK_N,
        )


def launch_spec(rows: int, inputs: int, outputs: int, bits: int, adapters: bool) -> dict[str, int]:
    """Tiles and the number of programs. bits: of a weight; rows: of x. Not measured yet on any GPU.

    Threads share K, 8 each at a time, so BLOCK_K = 256 per warp; 8 warps, fewer where K is smaller: the order of
    summation is a function of K alone. BLOCK_N: 64 bytes of W for each thread in each of two tiles under way (int4:
    32, since its scales take registers too) leave room for 2 to 4 programs on a multiprocessor, which makes some
    48 KB; an H200 needs about 30 KB (4.3 TB/s x 0.9 us / 132), a 4090 or 3090 about 8 KB.
    """
    warps = min(max(_power_of_two(inputs) // 256, 1), 8)
    block_m = min(_power_of_two(rows), ROWS)
    block_n = 4 if bits > 8 or block_m == ROWS else 8
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_K": 256 * warps,
        "num_warps": warps,
        "programs": _programs(outputs, block_n, adapters) * -(-rows // block_m),
    }


def sixteen_rows_spec(outputs: int, bits: int, group: int, adapters: bool) -> dict[str, int]:
    """As launch_spec, on tensor cores. Not measured yet on any GPU.

    32 rows of W give 4 warps an 8-wide tile each, and N = 4096 one program for each of 128 multiprocessors; stages
    keep 32 KB of W under way (int4, whose tiles end with a group: 14 KB) in less than the 99 KB of sm_86 and sm_89.
    """
    block_k = min(group & -group, 128) if bits == 4 else 256 if bits == 8 else 128
    stages = 8 if bits == 4 else 5
    return {
        "BLOCK_N": 32,
        "BLOCK_K": block_k,
        "BLOCK_A": 128,
        "num_warps": 4,
        "num_stages": stages,
        "programs": _programs(outputs, 32, adapters),
    }


def _programs(outputs: int, block_n: int, adapters: bool) -> int:
    """One for each block of W; with adapters fewer, since each reads all of A."""
    blocks = -(-outputs // block_n)
    return min(blocks, PROGRAMS) if adapters else blocks


def _power_of_two(n: int) -> int:
    """The smallest that is no less than n >= 1."""
    return 1 << max(n - 1, 0).bit_length()


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
    """As fused_linear_reference, on a GPU, without gradients: x (M, K), M <= 16, fp32, bf16 or fp16 -> (M, N).

    W (N, K): of x's dtype, int8 or int4 (group a multiple of 16). norm: weight (K,) and eps of an RMSNorm before.
    activation: None, "quick_gelu" or "swiglu", for which W is [gate; up] and y (M, N / 2). residual: y's shape.
    Everything but q and scales has x's dtype. Launches one kernel.
    """
    _check(x, weight, bias, norm, activation, residual)
    rows, inputs = x.shape
    outputs = weight.shape[0]
    if lora is not None:
        _check_lora(lora, x, outputs)
    x = x if x.stride(-1) == 1 else x.contiguous()
    y = torch.empty(rows, outputs // 2 if activation == "swiglu" else outputs, dtype=x.dtype, device=x.device)
    norm_weight, eps = norm if norm is not None else (None, 0.0)
    a, b, lora_scale, index = lora if lora is not None else (None, None, None, None)
    adapters, rank = lora.scale.shape if lora is not None else (0, 1)
    matrix, scales, bits, group = _parts(weight)
    a = a.flatten(0, 1) if a is not None else None
    kernel: Any = linear_sixteen_rows_kernel
    settings: dict[str, Any]
    if rows > ROWS and x.dtype != torch.float32 and (bits != 4 or group % 32 == 0):
        settings = sixteen_rows_spec(outputs, bits, group, lora is not None)
        settings["BLOCK_R"] = _power_of_two(max(rank, 16))
    else:
        kernel = _linear_few_rows_kernel
        settings = launch_spec(rows, inputs, outputs, bits, lora is not None)
        matrix, settings["WORDS"] = _words(matrix)
        a, settings["A_WORDS"] = (None, False) if a is None else _words(a)
        settings.update(A_BITS=8 * x.element_size(), BLOCK_R=_power_of_two(max(rank, 8)))
    programs = settings.pop("programs")
    strides = [0 if t is None else t.stride(0) for t in (x, matrix, a, residual)]
    sizes = rows, inputs, outputs, adapters, -(-outputs // settings["BLOCK_N"])
    launch(
        kernel,
        (programs,),
        *(x, norm_weight, matrix, scales, bias, a, b, lora_scale, index, residual, y, *strides, *sizes, eps),
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
    """A view as int32, four bytes each, and True; False and integers of its own width if rows do not consist of such."""
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
    fits = x.dim() == 2 and x.shape[0] <= MOST_ROWS and x.shape[1] > 0 and x.dtype in _GPU_DTYPES
    check(fits, x, f"fp32, bf16 or fp16 of (M, K), M at most {MOST_ROWS}, K at least 1")
    check(activation in _ACTIVATIONS, f"activation {activation!r}", "one of " + ", ".join(map(repr, _ACTIVATIONS)))
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
    if lora.index is not None:
        _same(lora.index, (x.shape[0],), torch.int32, x.device)


def _same(
    given: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, rows_apart: bool = False
) -> None:
    """rows_apart: rows may lie anywhere, their elements side by side; else all is contiguous."""
    laid = given.is_contiguous() or (rows_apart and given.dim() == 2 and given.stride(-1) == 1)
    kind = str(dtype).removeprefix("torch.")
    layout = "with elements of a row side by side" if rows_apart else "contiguous"
    fits = given.shape == shape and given.dtype == dtype and given.device == device and laid
    check(fits, given, f"{kind} {shape} on {device}, {layout}")
