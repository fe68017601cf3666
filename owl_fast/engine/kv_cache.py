"""The paged cache of keys and values: who owns which block, and the tensors behind them.

A sequence of n positions holds ceil(n / block_size) blocks, named by its block table. Sequences that share a
beginning (beams) share its blocks; a shared block is copied before one of them writes into it.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from math import prod
from typing import Any

import torch
from torch import Tensor

from owl_fast import ops
from owl_fast.config import LlamaConfig
from owl_fast.errors import ParameterError

BLOCK_SIZE = 16


def blocks_for(positions: int, block_size: int = BLOCK_SIZE) -> int:
    return -(-positions // block_size)


class BlockAllocator:
    """Reference-counted blocks 0..num_blocks-1. A table is the list of a sequence's blocks, in order."""

    def __init__(self, num_blocks: int, block_size: int = BLOCK_SIZE) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        self._owners = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))

    @property
    def free_blocks(self) -> int:
        return len(self._free)

    def owners(self, block: int) -> int:
        """How many tables hold the block."""
        return self._owners[block]

    def make_writable(self, table: list[int], start: int, end: int) -> list[tuple[int, int]]:
        """Let `table` own positions start..end-1 alone, growing it where needed.

        Returns the (from, to) block copies to carry out before anything is written; a second call finds
        nothing left to do. The caller has made sure that enough blocks are free.
        """
        copies = []
        for index in range(start // self.block_size, blocks_for(end, self.block_size)):
            if index == len(table):
                table.append(self._take())
            elif self._owners[table[index]] > 1:
                fresh = self._take()
                copies.append((table[index], fresh))
                self._owners[table[index]] -= 1
                table[index] = fresh
        return copies

    def fork(self, table: Seq[int]) -> list[int]:
        """A second table over the same blocks."""
        for block in table:
            self._owners[block] += 1
        return list(table)

    def release(self, table: list[int]) -> None:
        """Give the blocks of a table back and empty it."""
        for block in reversed(table):
            assert self._owners[block] > 0, f"block {block} released twice"
            self._owners[block] -= 1
            if self._owners[block] == 0:
                self._free.append(block)
        table.clear()

    def _take(self) -> int:
        assert self._free, "no free block: the scheduler admitted more than fits"
        block = self._free.pop()
        self._owners[block] = 1
        return block


def _empty_by_heads(shape: tuple[int, ...], **options: Any) -> Tensor:
    """(blocks, rows, heads, ...), whose heads lie one behind the other."""
    blocks, rows, heads, *rest = shape
    return torch.empty((blocks, heads, rows, *rest), **options).transpose(1, 2)


class KVCache:
    """Keys and values of every layer: (num_blocks, block_size, kv_heads, head_dim), in int8 with their
    float32 scales (num_blocks, block_size, kv_heads) behind them.

    For libowl_cpu a head's rows of a block lie side by side: memory serves few long pieces sooner than many
    short ones (benchmarks/LOG.md).
    """

    def __init__(
        self,
        config: LlamaConfig,
        num_blocks: int,
        dtype: torch.dtype,
        device: torch.device | str,
        block_size: int = BLOCK_SIZE,
    ) -> None:
        shape = (num_blocks, block_size, config.num_key_value_heads, config.head_dim)
        by_heads = ops.backend(torch.device(device)) == "libowl_cpu"
        empty = _empty_by_heads if by_heads else torch.empty
        self.block_size = block_size
        self.num_blocks = num_blocks
        parts: list[tuple[tuple[int, ...], torch.dtype]] = [(shape, dtype)] * 2
        if dtype == torch.int8:
            parts += [(shape[:3], torch.float32)] * 2
        try:
            self.layers: list[tuple[Tensor, ...]] = [
                tuple(empty(size, dtype=kind, device=device) for size, kind in parts)
                for _ in range(config.num_hidden_layers)
            ]
        except RuntimeError:  # whatever the device calls it
            size = config.num_hidden_layers * sum(prod(part) * kind.itemsize for part, kind in parts)
            raise ParameterError(
                f"the cache for {num_blocks * block_size} positions takes {size / 2**30:.1f} GiB, more than "
                f"{device} has left; lower max_context or max_batch"
            ) from None

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for layer in self.layers for tensor in layer)

    def copy_blocks(self, copies: Seq[tuple[int, int]]) -> None:
        """Carry out (from, to) copies in every layer. No block is both read and written."""
        if not copies:
            return
        device = self.layers[0][0].device
        source, target = torch.tensor(copies, device=device).unbind(1)
        for layer in self.layers:
            for tensor in layer:
                tensor.index_copy_(0, target, tensor.index_select(0, source))
