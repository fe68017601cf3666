"""Work over fixed tensors, recorded once and replayed with new contents: CUDA graphs, or libowl_cpu's calls.

A decode step launches some 160 kernels that take microseconds each; replaying them as one costs the host one
call, and on a CPU those of libowl_cpu come with their arguments ready. Sizes are rounded up to a bucket; the
rows in excess write nothing and are not looked at. Until a bucket is recorded its steps run eagerly, with the
same kernels and the same results.

n sequences, B the bucket's size, V vocabulary.
"""

from __future__ import annotations

import contextvars
import logging
import threading
from bisect import bisect_left
from collections.abc import Callable
from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from owl_fast import ops
from owl_fast.engine.blocks import blocks_for
from owl_fast.engine.kv_cache import KVCache
from owl_fast.engine.scheduler import Span
from owl_fast.models.batch import PackedBatch, PagedCache

BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)

Work = Callable[[], Tensor]
_log = logging.getLogger("owl_fast")


class Capture(Protocol):
    """Records what `work` launches; the result replays it and returns the tensor that work returned."""

    def __call__(self, work: Work, /) -> Work: ...


def cuda_capture(work: Work) -> Work:
    """Runs it once before, for a recording must not meet what is done only the first time."""
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


def cpu_capture(work: Work) -> Work:
    """Of work that has been done once. Believed after it has said what work says, of other contents than it
    was recorded with."""
    again, believed = ops.recorded(work), False

    def replay() -> Tensor:
        nonlocal again, believed
        result = again()
        if not believed:
            result, wanted, believed = result.clone(), work(), True
            if not torch.equal(result.view(torch.uint8), wanted.view(torch.uint8)):
                _log.warning("steps are not recorded and run slower: a recording said something else")
                again, result = work, wanted
        return result

    return replay


class Recorder:
    """Records in a thread of its own, between two steps. Until then, or if it fails, work runs eagerly."""

    def __init__(
        self,
        between_steps: Callable[[], AbstractContextManager[None]],
        capture: Capture = cuda_capture,
        takes: Callable[[Tensor], bool] = ops.uses_kernels,
    ) -> None:
        """between_steps: lends the model to this thread. takes: whether capture can record work on tensors
        like the one given."""
        self._between_steps, self._capture, self.takes = between_steps, capture, takes
        self._recorded: dict[object, Work] = {}
        self._wanted: set[object] = set()
        self._off = False

    def run(self, key: object, work: Work) -> Tensor:
        """What work gives; the same key always comes with the same work."""
        recorded = self._recorded.get(key)
        if recorded is not None:
            return recorded()
        if key not in self._wanted and not self._off:
            self._wanted.add(key)
            context = contextvars.copy_context()  # which kernels are in use is part of it
            # A process that ends waits for it: torch must not be cut off in the middle.
            threading.Thread(target=context.run, args=(self._record, key, work)).start()
        return work()

    def forget(self) -> None:
        """The model's weights have moved: what is recorded would read the old ones. Between steps only."""
        self._recorded.clear()

    def _record(self, key: object, work: Work) -> None:
        with self._between_steps(), torch.inference_mode():
            try:
                self._recorded[key] = self._capture(work)
            except RuntimeError as error:
                self._off = True
                _log.warning("steps are not recorded and run slower: %s", error)
            finally:
                self._wanted.discard(key)


class DecodeInputs:
    """What a step of up to `size` single rows is told, always at the same addresses."""

    def __init__(self, cache: KVCache, size: int, max_blocks: int, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self._rows = torch.zeros(3, size, dtype=torch.int64, pin_memory=pinned)
        self._lengths = torch.zeros(size, 1 + max_blocks, dtype=torch.int32, pin_memory=pinned)
        self._sent = self._rows.to(device, copy=True), self._lengths.to(device, copy=True)
        self._owner = torch.zeros(size, dtype=torch.int32, pin_memory=pinned)
        self._block_size = cache.block_size
        ids, positions, slots = self._sent[0].unbind()
        lengths = self._sent[1]
        self.batch = PackedBatch(
            token_ids=ids,
            positions=positions,
            cu_seqlens=torch.arange(size + 1, dtype=torch.int32, device=device),
            bounds=tuple(range(size + 1)),
            cache=PagedCache(cache.layers, slots, lengths[:, 1:], lengths[:, 0], lengths=()),
        )
        self.owned = replace(self.batch, owner=self._owner.to(device, copy=True))

    def fill(self, spans: Seq[Span]) -> None:
        """Rows beyond the spans get no slot and no keys."""
        rows, lengths = self._rows.numpy(), self._lengths.numpy()
        rows[:2, len(spans) :], rows[2, len(spans) :], lengths[len(spans) :] = 0, -1, 0
        for i, span in enumerate(spans):
            table, position = span.sequence.table, span.start
            slot = table[position // self._block_size] * self._block_size + position % self._block_size
            rows[:, i] = span.sequence.token_ids[position], position, slot
            lengths[i, 0] = span.end
            lengths[i, 1 : 1 + len(table)] = table
        for sent, host in zip(self._sent, (self._rows, self._lengths), strict=True):
            sent.copy_(host, non_blocking=True)

    def own(self, owners: Seq[int]) -> None:
        """Whose the rows of `owned` are; those beyond are nobody's."""
        rows = self._owner.numpy()
        rows[: len(owners)], rows[len(owners) :] = owners, -1
        assert self.owned.owner is not None
        self.owned.owner.copy_(self._owner, non_blocking=True)


class DecodeGraphs:
    """Steps in which every sequence gets one row, of a token."""

    def __init__(
        self,
        model: Callable[[PackedBatch], Tensor],
        cache: KVCache,
        max_batch: int,
        max_context: int,
        device: torch.device,
        recorder: Recorder,
        sizes: Seq[int],
    ) -> None:
        """model: a batch -> logits (rows, V). sizes: of buckets, ascending."""
        self._model, self._recorder = model, recorder
        self._sizes = (*(size for size in sizes if size < max_batch), max_batch)
        max_blocks = blocks_for(max_context, cache.block_size)
        self._make = partial(DecodeInputs, cache, max_blocks=max_blocks, device=device)
        self._inputs: dict[int, DecodeInputs] = {}

    def run(self, spans: Seq[Span], owners: Seq[int] | None = None) -> Tensor:
        """Logits (n, V) in the model's dtype; they stay as they are until the next step. owners: whose
        updates each row takes, -1: nobody's."""
        size = self._sizes[bisect_left(self._sizes, len(spans))]
        if size not in self._inputs:
            self._inputs[size] = self._make(size)
        inputs = self._inputs[size]
        inputs.fill(spans)
        if owners is not None:
            inputs.own(owners)
        batch = inputs.batch if owners is None else inputs.owned
        return self._recorder.run((size, owners is None), lambda: self._model(batch))[: len(spans)]


class PictureGraph:
    """The tower and the abstractor on one picture."""

    def __init__(self, encode: Callable[[Tensor], Tensor], recorder: Recorder) -> None:
        """encode: (1, 3, S, S) -> (1, rows, hidden)."""
        self._encode, self._recorder = encode, recorder
        self._pixels: Tensor | None = None

    def run(self, pixels: Tensor, like: Tensor) -> Tensor:
        """pixels (1, 3, S, S), always of one shape; like: a tensor of the model."""
        if self._pixels is None:
            self._pixels = torch.empty(pixels.shape, dtype=like.dtype, device=like.device)
        self._pixels.copy_(pixels, non_blocking=True)
        held = self._pixels
        return self._recorder.run("picture", lambda: self._encode(held)).clone()
