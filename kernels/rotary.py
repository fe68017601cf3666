"""Rotary position embedding, half-split form (RoFormer, arXiv 2104.09864, in LLaMA's channel order).

For channel i < D/2 and angle t = position * theta^(-2i/D):
    y[i]       = x[i] cos t - x[i + D/2] sin t
    y[i + D/2] = x[i + D/2] cos t + x[i] sin t

The gradient of a rotation is the rotation back: dx = rotary(dy) by -t. N rows, H query heads, K key heads,
D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from owl_fast.kernels.launch import GPU_DTYPES, check, jit, launch, power_of_two, tl


def rotary_tables(
    positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """positions (N,) -> cos, sin (N, D/2), computed in float32 and cast to dtype."""
    channels = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device)
    inverse_frequency = 1.0 / theta ** (channels / head_dim)
    angles = positions.to(torch.float32)[:, None] * inverse_frequency
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotary_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (N, heads, D), cos and sin (N, D/2) -> (N, heads, D)."""
    low, high = x.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]  # (N, 1, D/2)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)


@jit
def rotated(x, cos, sin, columns, inside, other, BACK: tl.constexpr, HALF: tl.constexpr):
    """x: pointers to the first channel of each head (R, 1); cos, sin: to the row's angles -> (R, D) in fp32.

    Every channel is loaded a second time for its partner half a head away; the cache next to the SM has it.
    other: cos and sin of what is not inside. BACK: by the negative angle.
    """
    partner = tl.where(columns < HALF, columns + HALF, columns - HALF)
    mine = tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)
    theirs = tl.load(x + partner, mask=inside, other=0.0).to(tl.float32)
    cosine = tl.load(cos + columns % HALF, mask=inside, other=other).to(tl.float32)
    sine = tl.load(sin + columns % HALF, mask=inside, other=other).to(tl.float32)
    return mine * cosine + tl.where((columns < HALF) != BACK, -theirs, theirs) * sine


@jit
def _rotary_kernel(
    query, key, cos, sin, query_out, key_out, query_row, query_head, key_row, key_head,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BACK: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Some heads of one row per program: first those of the queries, then those of the keys."""
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    half: tl.constexpr = HEAD_DIM // 2
    query_tiles: tl.constexpr = (HEADS + BLOCK_H - 1) // BLOCK_H
    columns = tl.arange(0, BLOCK_D)[None, :]
    heads = tl.arange(0, BLOCK_H)[:, None]
    cos += row * half
    sin += row * half
    if tile < query_tiles:
        heads += tile * BLOCK_H
        inside = (heads < HEADS) & (columns < HEAD_DIM)
        x, y = query + row * query_row + heads * query_head, query_out + (row * HEADS + heads) * HEAD_DIM
        _rotate_heads(x, y, cos, sin, columns, inside, BACK, half)
    else:
        heads += (tile - query_tiles) * BLOCK_H
        inside = (heads < KV_HEADS) & (columns < HEAD_DIM)
        x, y = key + row * key_row + heads * key_head, key_out + (row * KV_HEADS + heads) * HEAD_DIM
        _rotate_heads(x, y, cos, sin, columns, inside, BACK, half)


@jit
def _rotate_heads(x, y, cos, sin, columns, inside, BACK: tl.constexpr, HALF: tl.constexpr):
    values = rotated(x, cos, sin, columns, inside, 0.0, BACK, HALF)
    tl.store(y + columns, values.to(y.dtype.element_ty), mask=inside)


def launch_spec(heads: int, head_dim: int) -> dict[str, int]:
    """Heads of one row side by side, 16 values a thread (not measured yet)."""
    block_d = power_of_two(head_dim)
    block_h = min(power_of_two(heads), max(2048 // block_d, 1))
    return {"BLOCK_H": block_h, "BLOCK_D": block_d, "num_warps": min(max(block_h * block_d // 512, 1), 8)}


def check_rotary(x: Tensor, cos: Tensor, sin: Tensor, name: str = "rows") -> None:
    """x (N, heads, D) with neighbouring channels side by side, and cos, sin (N, D/2) of its dtype."""
    check(x.dim() == 3 and x.dtype in GPU_DTYPES, x, f"{name}: fp32, bf16 or fp16 (N, heads, D)")
    check(x.shape[-1] % 2 == 0 and x.stride(-1) == 1, x, f"{name}: an even D, channels side by side")
    for table in (cos, sin):
        fits = table.shape[-1:] == (x.shape[-1] // 2,) and table.dim() == 2 and table.is_contiguous()
        fits &= table.dtype == x.dtype and table.device == x.device
        check(fits, table, f"angles: contiguous {x.dtype} (rows, {x.shape[-1] // 2}) on {x.device}")


def rotary_triton(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """query (N, H, D), key (N, K, D), any row and head stride; cos, sin (N, D/2) -> both rotated, contiguous.

    One launch, and one for the gradients of both.
    """
    for x, name in ((query, "query"), (key, "key")):
        check_rotary(x, cos, sin, name)
        check(len(x) == len(cos) == len(sin), x, f"{name}: {len(cos)} rows as angles")
    check(key.dtype == query.dtype and key.shape[-1] == query.shape[-1], key, f"key as query {query.shape}")
    rotated_pair: tuple[Tensor, Tensor] = _Rotary.apply(query, key, cos, sin)
    return rotated_pair


def _rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, back: bool) -> tuple[Tensor, Tensor]:
    rows, heads, head_dim = query.shape
    kv_heads = key.shape[1]
    out = query.new_empty(query.shape), key.new_empty(key.shape)
    spec = launch_spec(heads, head_dim)
    tiles = -(-heads // spec["BLOCK_H"]) + -(-kv_heads // spec["BLOCK_H"])
    launch(
        _rotary_kernel, (rows, tiles), query, key, cos, sin, *out, *query.stride()[:2], *key.stride()[:2],
        HEADS=heads, KV_HEADS=kv_heads, HEAD_DIM=head_dim, BACK=back, **spec,
    )  # fmt: skip
    return out


class _Rotary(torch.autograd.Function):
    """Keeps the angles alone."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return _rotate(query, key, cos, sin, back=False)

    @staticmethod
    def backward(ctx: Any, dquery: Tensor, dkey: Tensor) -> tuple[Tensor, Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        dquery, dkey = (d if d.stride(-1) == 1 else d.contiguous() for d in (dquery, dkey))
        return *_rotate(dquery, dkey, cos, sin, back=True), None, None
