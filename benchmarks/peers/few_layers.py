"""transformers with some of the layers, where all of them in 16 bits do not fit beside the other contenders.

Its times are scaled by what the whole model has to read (decoding) or to multiply (prompts).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from benchmarks import models
from benchmarks.peers import transformers_llama
from benchmarks.steps import Steps
from benchmarks.timing import Timer, wall_timer
from owl_fast.checkpoints.load import empty_model
from owl_fast.config import LlamaConfig
from owl_fast.models.batch import PackedBatch
from owl_fast.models.owl import Owl

LAYERS = 4


def name(config: LlamaConfig, peer: str = transformers_llama.EAGER) -> str:
    whole = config.num_hidden_layers
    return f"{peer}, {min(LAYERS, whole)} of {whole} layers, scaled"


def decode(name: str, device: torch.device, answers: int, context: int, steps: int) -> Steps:
    """Seconds that all layers would take, of each step."""
    few, whole = _few_and_whole(name, device)
    read = [models.language_effort(m, answers, answers, cached=context).nbytes for m in (whole, few)]
    for seconds in transformers_llama.decode(few, answers, context, steps, static=False):
        yield seconds * read[0] / read[1]


def first_token(name: str, device: torch.device, tokens: int) -> tuple[Timer, str]:
    """Seconds that all layers would take for the first token after a prompt of so many."""
    few, whole = _few_and_whole(name, device)
    flops = [models.language_effort(m, tokens).flops for m in (whole, few)]
    batch = PackedBatch.from_sequences([[5] * tokens], device=device)
    timer, note = wall_timer(transformers_llama.first_token(few, lambda: batch), device)
    return lambda: timer() * flops[0] / flops[1], note


def generator(
    name: str, device: torch.device
) -> Callable[[Sequence[Sequence[int]], int], tuple[float, float]]:
    """Seconds that all layers would take for batched answers of so many tokens: to the first ones, and of the
    others."""
    few, whole = _few_and_whole(name, device)
    run = transformers_llama.generator(few)

    def scaled(prompts: Sequence[Sequence[int]], tokens: int) -> tuple[float, float]:
        answers, context = len(prompts), len(prompts[0])
        flops = [models.language_effort(m, answers * context, answers).flops for m in (whole, few)]
        cached = context + tokens // 2
        read = [models.language_effort(m, answers, answers, cached=cached).nbytes for m in (whole, few)]
        first, others = run(prompts, tokens)
        return first * flops[0] / flops[1], others * read[0] / read[1]

    return scaled


@functools.cache
def _few_and_whole(name: str, device: torch.device) -> tuple[Owl, Owl]:
    """The second without weights."""
    config = models.config_of(name)
    layers = min(LAYERS, config.llama.num_hidden_layers)
    few = models.part_of(name, device, layers=layers, pictures=False)
    return few, empty_model(replace(config, quantization=None)).to(few.dtype)
