"""Block ownership under any order of growing, forking, sharing and releasing; block copies in the tensors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from owl_fast.config import LlamaConfig
from owl_fast.engine.blocks import BlockAllocator, blocks_for, prefix_digest
from owl_fast.engine.kv_cache import KVCache

BLOCKS, SIZE = 12, 4


class AllocatorMachine(RuleBasedStateMachine):
    """Tables of sequences with their lengths and contents, against a plain list of what each one wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = BlockAllocator(BLOCKS, SIZE)
        self.tables: list[list[int]] = []
        self.written: list[list[int]] = []
        self.memory = [[-1] * SIZE for _ in range(BLOCKS)]
        self.counter = 0
        self.known: list[list[int]] = []  # what was told, from the start

    def _room(self, index: int, count: int) -> bool:
        grown = blocks_for(len(self.written[index]) + count, SIZE) - len(self.tables[index])
        return grown + 1 <= self.allocator.free_blocks  # one more for a copy

    @rule()
    def start(self) -> None:
        self.tables.append([])
        self.written.append([])

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), count=st.integers(1, 9))
    def write(self, data: st.DataObject, count: int) -> None:
        index = data.draw(st.integers(0, len(self.tables) - 1))
        if not self._room(index, count):
            return
        table, written = self.tables[index], self.written[index]
        start, end = len(written), len(written) + count
        for source, target in self.allocator.make_writable(table, start, end):
            self.memory[target] = list(self.memory[source])
        assert self.allocator.make_writable(table, start, end) == []
        for position in range(start, end):
            assert self.allocator.owners(table[position // SIZE]) == 1
            self.counter += 1
            self.memory[table[position // SIZE]][position % SIZE] = self.counter
            written.append(self.counter)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.tables) - 1))
        self.tables.append(self.allocator.fork(self.tables[index]))
        self.written.append(list(self.written[index]))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def tell(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.tables) - 1))
        table, written = self.tables[index], self.written[index]
        prefix = b""
        for place, block in enumerate(table):
            units = written[place * SIZE : (place + 1) * SIZE]
            self.allocator.tell(block, prefix, units)
            prefix = prefix_digest(prefix, units)
        self.known.append(list(written))

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def begin_as_another(self, data: st.DataObject) -> None:
        told = data.draw(st.sampled_from(self.known))
        wanted = [*told[: data.draw(st.integers(0, len(told)))], -2]
        table, count = self.allocator.match(b"", wanted)
        assert count < len(wanted)
        self.tables.append(table)
        self.written.append(wanted[:count])

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from(self.tables))
        self.allocator.forget(table)
        assert not any(map(self.allocator.known, table))

    @rule()
    def forget_contents(self) -> None:
        self.allocator.forget_contents()
        assert self.allocator.match(b"", [unit for told in self.known for unit in told]) == ([], 0)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.tables) - 1))
        self.allocator.release(self.tables.pop(index))
        self.written.pop(index)

    @invariant()
    def blocks_are_conserved(self) -> None:
        held = [block for table in self.tables for block in table]
        assert len(set(held)) + self.allocator.free_blocks == BLOCKS
        for block in range(BLOCKS):
            assert self.allocator.owners(block) == held.count(block)

    @invariant()
    def every_table_shows_what_its_sequence_wrote(self) -> None:
        for table, written in zip(self.tables, self.written, strict=True):
            assert len(table) == blocks_for(len(written), SIZE)
            assert [self.memory[table[p // SIZE]][p % SIZE] for p in range(len(written))] == written


RUNS = settings(max_examples=500, stateful_step_count=50, deadline=None, derandomize=True)
AllocatorMachine.TestCase.settings = RUNS
TestAllocator = AllocatorMachine.TestCase


@pytest.mark.slow
def test_orders_that_nobody_has_seen_before() -> None:
    run_state_machine_as_test(
        AllocatorMachine, settings=settings(RUNS, max_examples=20_000, derandomize=False)
    )


def test_copy_blocks_moves_keys_and_values_of_every_layer() -> None:
    config = LlamaConfig(
        hidden_size=8, num_attention_heads=2, num_key_value_heads=2, num_hidden_layers=3, intermediate_size=8
    )
    cache = KVCache(config, num_blocks=6, dtype=torch.float32, device="cpu", block_size=4)
    for layer in cache.layers:
        for tensor in layer:
            tensor.normal_()
    before = [[tensor.clone() for tensor in layer] for layer in cache.layers]
    cache.copy_blocks([(0, 3), (5, 1)])
    for layer, old in zip(cache.layers, before, strict=True):
        for tensor, was in zip(layer, old, strict=True):
            assert torch.equal(tensor[[3, 1]], was[[0, 5]])
            assert torch.equal(tensor[[0, 2, 4, 5]], was[[0, 2, 4, 5]])
    assert cache.nbytes == 3 * 2 * 6 * 4 * 2 * 4 * 4
