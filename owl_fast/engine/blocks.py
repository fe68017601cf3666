"""Which block of the paged cache belongs to whom, and what the blocks hold.

A sequence of n positions holds ceil(n / block_size) blocks, named by its block table. A block's content is
told by units, one for each of its positions: the token's id, or for a row of a picture a number below zero
that its content decides; and by its prefix, a digest of all that stands before. Sequences that begin alike
share blocks, also with those that have ended: a block that nobody holds keeps its content until it is needed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from hashlib import sha256
from itertools import islice
from typing import NamedTuple

import numpy as np

from owl_fast.errors import ParameterError

BLOCK_SIZE = 16
LOOKED_AT = 64  # blocks with the same prefix, for one that agrees in part: a search must not grow


def blocks_for(positions: int, block_size: int = BLOCK_SIZE) -> int:
    return -(-positions // block_size)


def cache_blocks(context: int, rows: int, positions: int | None) -> int:
    """Blocks of a cache for so many positions in all; None: for a whole context of every row. ParameterError
    if not even one context fits."""
    if positions is None:
        return rows * blocks_for(context)
    if positions < context:
        raise ParameterError(
            f"cache_positions is {positions}, the context {context}; raise the one or lower max_context"
        )
    return blocks_for(positions)


def prefix_digest(prefix: bytes, units: Seq[int]) -> bytes:
    """The prefix of the block behind one of these units, which has this prefix itself."""
    return sha256(prefix + np.asarray(units, dtype=np.int64).tobytes()).digest()


class _Content(NamedTuple):
    prefix: bytes
    units: tuple[int, ...]


class _Contents:
    """What is known of the blocks' contents, in both directions."""

    def __init__(self) -> None:
        self._of: dict[int, _Content] = {}
        self._blocks: dict[bytes, dict[tuple[int, ...], int]] = {}  # prefix -> units -> block

    def known(self, block: int) -> int:
        """How many of its positions are spoken for."""
        return len(self._of[block].units) if block in self._of else 0

    def put(self, block: int, content: _Content) -> None:
        """Nothing happens if another block holds the same."""
        found = self._blocks.setdefault(content.prefix, {})
        if content.units not in found:
            self.drop(block)
            self._blocks.setdefault(content.prefix, {})[content.units] = block
            self._of[block] = content

    def drop(self, block: int) -> None:
        content = self._of.pop(block, None)
        if content is not None:
            found = self._blocks[content.prefix]
            del found[content.units]
            if not found:
                del self._blocks[content.prefix]

    def find(self, prefix: bytes, units: tuple[int, ...]) -> tuple[int, int]:
        """(block, positions) of the one that has most of these units in common; 0 positions: none has any."""
        found = self._blocks.get(prefix, {})
        if units in found:
            return found[units], len(units)
        some = islice(found, LOOKED_AT)
        best = max(some, key=lambda held: _in_common(held, units), default=())
        return found.get(best, 0), _in_common(best, units)


def _in_common(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count


class BlockAllocator:
    """Reference-counted blocks 0..num_blocks-1. A table is the list of a sequence's blocks, in order."""

    def __init__(self, num_blocks: int, block_size: int = BLOCK_SIZE, keep: bool = True) -> None:
        """keep: what blocks hold is remembered, and found by those that begin alike."""
        self.keeps = keep
        self.block_size = block_size
        self.num_blocks = num_blocks
        self._owners = [0] * num_blocks
        self._blank = list(range(num_blocks - 1, -1, -1))
        self._kept: OrderedDict[int, None] = OrderedDict()  # nobody's, content known; the oldest first
        self._contents = _Contents()

    @property
    def free_blocks(self) -> int:
        """Blocks that nobody holds, whether their content is kept or not."""
        return len(self._blank) + len(self._kept)

    def owners(self, block: int) -> int:
        """How many tables hold the block."""
        return self._owners[block]

    def known(self, block: int) -> int:
        """How many positions of the block somebody may still look for."""
        return self._contents.known(block)

    def match(self, prefix: bytes, units: Seq[int]) -> tuple[list[int], int]:
        """The blocks that hold the first positions of a sequence, and how many positions: a table to go on
        with, in which the last block may fit in part."""
        table: list[int] = []
        size = self.block_size
        for start in range(0, len(units), size):
            part = tuple(units[start : start + size])
            block, count = self._contents.find(prefix, part)
            if count:
                self._hold(block)
                table.append(block)
            if count < size:
                return table, start + count
            prefix = prefix_digest(prefix, part)
        return table, len(units)

    def tell(self, block: int, prefix: bytes, units: Seq[int]) -> None:
        """The block's first positions hold these units from now on."""
        if self.keeps:
            self._contents.put(block, _Content(prefix, tuple(units)))

    def forget(self, blocks: Iterable[int]) -> None:
        """From now on nobody finds these blocks, which somebody holds."""
        for block in blocks:
            self._contents.drop(block)

    def forget_contents(self) -> None:
        """From now on no block is found, whatever it holds."""
        self._contents = _Contents()
        self._blank += self._kept
        self._kept.clear()

    def missing(self, table: Seq[int], start: int, end: int) -> int:
        """How many blocks make_writable would take."""
        indices = range(start // self.block_size, blocks_for(end, self.block_size))
        return sum(index >= len(table) or self._is_shared(table[index], index, start) for index in indices)

    def make_writable(self, table: list[int], start: int, end: int) -> list[tuple[int, int]]:
        """Let `table` own positions start..end-1 alone, growing it where needed.

        Returns the (from, to) block copies to carry out before anything is written; a second call finds
        nothing left to do. The caller has made sure that enough blocks are free.
        """
        copies = []
        for index in range(start // self.block_size, blocks_for(end, self.block_size)):
            if index == len(table):
                table.append(self._take())
            elif self._is_shared(table[index], index, start):
                fresh = self._take()
                copies.append((table[index], fresh))
                self._let_go(table[index])
                table[index] = fresh
        return copies

    def fork(self, table: Seq[int]) -> list[int]:
        """A second table over the same blocks."""
        for block in table:
            self._hold(block)
        return list(table)

    def release(self, table: list[int]) -> None:
        """Give the blocks of a table back and empty it. Its end is forgotten before its beginning, which
        others may share."""
        for block in reversed(table):
            self._let_go(block)
        table.clear()

    def _is_shared(self, block: int, index: int, start: int) -> bool:
        """Whether writing from position `start` on would change what somebody else may read."""
        before = max(0, start - index * self.block_size)
        return self._owners[block] > 1 or self.known(block) > before

    def _hold(self, block: int) -> None:
        if self._owners[block] == 0:
            del self._kept[block]
        self._owners[block] += 1

    def _let_go(self, block: int) -> None:
        assert self._owners[block] > 0, f"block {block} released twice"
        self._owners[block] -= 1
        if self._owners[block] == 0:
            if self.known(block):
                self._kept[block] = None
            else:
                self._blank.append(block)

    def _take(self) -> int:
        assert self.free_blocks, "no free block: the scheduler let in more than fits"
        if self._blank:
            block = self._blank.pop()
        else:
            block, _ = self._kept.popitem(last=False)
            self._contents.drop(block)
        self._owners[block] = 1
        return block
