"""A paged cache for the tests of kernels: scattered blocks, NaN where nothing was written."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from owl_fast.kernels.kv_append import dequantize_heads, quantize_heads
from tests.kernels.tensors import random

NOWHERE = 2**30  # a block that is not there


@dataclass
class Pages:
    """caches: keys, values and, in int8, their scales. tables (B, max_blocks) and lengths (B,) int32."""

    caches: list[Tensor]
    tables: Tensor
    lengths: Tensor
    block_size: int

    @property
    def scales(self) -> list[Tensor]:
        return self.caches[2:]

    def copy(self) -> Pages:
        return Pages([x.clone() for x in self.caches], self.tables, self.lengths, self.block_size)

    def by_heads(self) -> Pages:
        """The same, a head's rows of a block side by side, as the engine keeps them on a CPU."""
        caches = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in self.caches]
        return Pages(caches, self.tables, self.lengths, self.block_size)

    def slots(self, positions: Tensor, sequence: int) -> Tensor:
        blocks = self.tables[sequence, positions // self.block_size].long()
        return blocks * self.block_size + positions % self.block_size

    def last_slots(self) -> Tensor:
        """(B,) int64: where each sequence's last token goes; -1 for an empty one."""
        found = [
            self.slots(torch.tensor([length - 1], device=self.tables.device), row) if length else None
            for row, length in enumerate(self.lengths.tolist())
        ]
        none = torch.full((1,), -1, device=self.tables.device)
        return torch.cat([none if slot is None else slot for slot in found])

    def exact(self) -> list[Tensor]:
        """Keys and values in float64."""
        if not self.scales:
            return [x.double() for x in self.caches]
        return [dequantize_heads(x, s, torch.float64) for x, s in zip(self.caches, self.scales, strict=False)]


def make_pages(
    lengths: list[int],
    kv_heads: int,
    head_dim: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantized: bool = False,
    block_size: int = 16,
    width: int = 0,
) -> Pages:
    """Every token is there; slots of none are NaN (int8: their scales). width: of the tables, at least."""
    counts = [-(-length // block_size) for length in lengths]
    total = sum(counts) + 3
    order = torch.randperm(total, generator=torch.Generator().manual_seed(7)).int()
    tables = torch.full((len(lengths), max([*counts, width, 1])), NOWHERE, dtype=torch.int32)
    used = torch.zeros(total, block_size, dtype=torch.bool)
    start = 0
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        tables[row, :count] = order[start : start + count]
        places = torch.arange(length)
        used[tables[row, places // block_size].long(), places % block_size] = True
        start += count
    shape = total, block_size, kv_heads, head_dim
    filled = [random(*shape, dtype=dtype, device=device, seed=seed) for seed in (3, 4)]
    unused = ~used.to(device)
    scales = []
    if quantized:
        pairs = [quantize_heads(x) for x in filled]
        filled, scales = [q for q, _ in pairs], [s for _, s in pairs]
    for x in scales or filled:
        x[unused] = math.nan
    # Columns of one tensor, as the engine sends them.
    both = torch.cat((torch.tensor(lengths, dtype=torch.int32)[:, None], tables), 1).to(device)
    return Pages(filled + scales, both[:, 1:], both[:, 0], block_size)


def fused_qkv(
    rows: int, heads: int, kv_heads: int, head_dim: int, *, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """query (N, H, D), key, value (N, K, D): views of one projection's rows."""
    widths = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
    qkv = random(rows, sum(widths), dtype=dtype, device=device, seed=11)
    query, key, value = (part.unflatten(-1, (-1, head_dim)) for part in qkv.split(widths, -1))
    return query, key, value
