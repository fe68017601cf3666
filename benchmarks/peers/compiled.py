"""torch.compile of our references: of the repeated blocks, once each; a whole model would take minutes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.timing import Contender, Run, captured, wall_timer
from owl_fast import ops
from owl_fast.engine.blocks import blocks_for
from owl_fast.engine.kv_cache import KVCache
from owl_fast.models.abstractor import AbstractorLayer
from owl_fast.models.batch import PackedBatch, PagedCache
from owl_fast.models.llama import LlamaLayer
from owl_fast.models.owl import Owl
from owl_fast.models.vision import VisionLayer

NAME = "torch.compile of plain torch"
BLOCKS = (VisionLayer, AbstractorLayer, LlamaLayer)


def compiled(run: Callable[[], Tensor], device: torch.device) -> Run:
    """run with compiled blocks; on CUDA captured in a graph, without which launching would take most time."""

    @torch.inference_mode()
    def with_blocks() -> Tensor:
        with _compiled_blocks():
            return run()

    with_blocks()
    return captured(with_blocks)[0] if device.type == "cuda" else with_blocks


def contender(run: Callable[[], Tensor], device: torch.device, left_out: str) -> Contender:
    """What a race takes. left_out: why it takes no part, if so."""
    return left_out or (lambda: wall_timer(compiled(run, device), device))


@functools.cache
def _forwards() -> Mapping[type, Callable[..., Tensor]]:
    return {block: torch.compile(block.forward, dynamic=False, fullgraph=True) for block in BLOCKS}


@contextmanager
def _compiled_blocks() -> Iterator[None]:
    """ops.kernels(False) in a form that torch can look through."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(ops, "uses_kernels", _never))
        stack.enter_context(patch.object(ops, "differentiates", _never))
        stack.enter_context(patch.object(ops, "native_library", _none))
        for block, forward in _forwards().items():
            stack.enter_context(patch.object(block, "forward", forward))
        yield


def _never(*_: object) -> bool:
    return False


def _none(*_: Tensor | None) -> None:
    return None


def decode_step(model: Owl, answers: int, context: int) -> Run:
    """One token more for each of `answers` sequences of `context` cached rows, always the same ones: the
    references take lengths as numbers, for which torch would compile each step anew."""
    blocks = blocks_for(context + 1)
    cache = KVCache(model.config.llama, answers * blocks, model.dtype, model.device)
    for tensor in (tensor for layer in cache.layers for tensor in layer):
        tensor.normal_()
    batch = PackedBatch.from_sequences([[1]] * answers, starts=[context] * answers, device=model.device)
    tables = torch.arange(answers * blocks, dtype=torch.int32, device=model.device).view(answers, blocks)
    paged = PagedCache(
        layers=cache.layers,
        slot_mapping=tables[:, -1].long() * cache.block_size + context % cache.block_size,
        block_tables=tables,
        context_lens=torch.full((answers,), context + 1, dtype=torch.int32, device=model.device),
        lengths=(context + 1,) * answers,
    )
    # Each layer sees a cache of one layer, its own: with its number in it every layer would be compiled.
    batches = [replace(batch, cache=replace(paged, layers=[layer])) for layer in cache.layers]

    def step() -> Tensor:
        llama = model.language_model.model
        x = model.embed(batch)
        cos, sin = ops.rotary_tables(batch.positions, llama.config.head_dim, llama.config.rope_theta, x.dtype)
        for layer, seen in zip(llama.layers, batches, strict=True):
            x = layer(x, cos, sin, seen, 0)
        return model.logits(llama.norm(x)).argmax(-1)

    return compiled(step, model.device)
