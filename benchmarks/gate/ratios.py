"""How many times as fast work is as the same work by other means, in turns in one run on one core of a CPU.

In float32, which all processors multiply alike: in bf16 the peers are many times as fast where there are
instructions for it, and many times as slow elsewhere. Weights of answers do not stay in a core's cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks import models
from benchmarks.gate.counts import CPU, STAGE2, training_step
from benchmarks.peers.plain import plain
from benchmarks.timing import Run, alternate, wall_timer
from owl_fast import ops
from owl_fast.config import AbstractorConfig, LlamaConfig, OwlConfig, Quantization, VisionConfig
from owl_fast.engine.blocks import BLOCK_SIZE, blocks_for
from owl_fast.models.owl import Owl

SECONDS = 0.7  # of each contender
WIDTH, OUTPUTS = 4096, 11008  # of LLaMA-7B's widest layer
ANSWERS, CONTEXT, HEADS, HEAD_WIDTH = 4, 512, 16, 128
TOKENS, PROMPT = 16, 128
VISION = VisionConfig(1024, 4096, 2, 16)
ABSTRACTOR = AbstractorConfig(1024, 1024, 2816, 1, 16, attention_probs_dropout_prob=0.0)
CONFIG = OwlConfig(VISION, ABSTRACTOR, LlamaConfig(4096, 1024, 2816, 4, 16, 16))
TRAINED = OwlConfig(
    VisionConfig(512, 2048, 2, 8),
    AbstractorConfig(512, 512, 1408, 1, 8, attention_probs_dropout_prob=0.0),
    LlamaConfig(4096, 512, 1408, 2, 8, 8),
)
Pair = tuple[Run, Run]  # ours and the peer's


def measured(name: str) -> list[float]:
    """The peer's time over ours, of every two runs one after the other."""
    ours, peer = RATIOS[name]()
    timers = {"ours": wall_timer(ours, CPU)[0], "peer": wall_timer(peer, CPU)[0]}
    taken = alternate(timers, SECONDS)
    return [theirs / mine for mine, theirs in zip(taken["ours"], taken["peer"], strict=True)]


@functools.cache
def model(scheme: str | None) -> Owl:
    return models.made(CONFIG, torch.float32, CPU, None if scheme is None else Quantization(scheme))


def int4_row() -> Pair:
    weight = ops.tiled(models.random_weight((OUTPUTS, WIDTH), "int4", 128, CPU))
    dense, x = torch.randn(OUTPUTS, WIDTH), torch.randn(1, WIDTH)
    assert weight is not None
    return lambda: ops.lora_linear(x, weight), lambda: F.linear(x, dense)


def attention() -> Pair:
    """One new row each of a few answers over a paged cache; the peer's keys lie as it wants them."""
    blocks = blocks_for(CONTEXT)
    query = torch.randn(ANSWERS, HEADS, HEAD_WIDTH)
    key, value = (torch.randn(ANSWERS, HEADS, CONTEXT, HEAD_WIDTH) for _ in range(2))
    pages = ANSWERS, HEADS, blocks, BLOCK_SIZE, HEAD_WIDTH
    # (blocks, block size, heads, D), a head's rows side by side, as engine/kv_cache.py has them
    keys, values = (
        x.view(pages).transpose(1, 2).flatten(0, 1).contiguous().transpose(1, 2) for x in (key, value)
    )
    tables = torch.arange(ANSWERS * blocks, dtype=torch.int32).view(ANSWERS, blocks)
    bounds, lengths = range(ANSWERS + 1), (CONTEXT,) * ANSWERS
    starts, context = (torch.tensor(x, dtype=torch.int32) for x in (bounds, lengths))
    return (
        lambda: ops.paged_attention(query, keys, values, tables, starts, context, bounds, lengths),
        lambda: F.scaled_dot_product_attention(query[:, :, None], key, value),
    )


def picture() -> Pair:
    pixels = models.pixels_of(model(None))[None]
    ours = torch.inference_mode()(lambda: model(None).encode_images(pixels))
    return ours, plain(ours)


def asked(scheme: str | None, prompt: int, tokens: int) -> Run:
    engine = models.engine(model(scheme), max_context=prompt + tokens)
    text = models.prompt_of(prompt, engine)
    return lambda: engine.generate(text, max_tokens=tokens, temperature=0.0, ignore_eos=True)


def answer() -> Pair:
    return asked("int4", 8, TOKENS), plain(asked(None, 8, TOKENS))


def first_token() -> Pair:
    return asked("int4", PROMPT, 1), plain(asked(None, PROMPT, 1))


def training() -> Pair:
    """Pictures and text; the peer keeps for backward what plain torch keeps."""
    ours = training_step(models.made(TRAINED, torch.float32, CPU), STAGE2, (2, 128, 40))
    return ours, plain(ours)


RATIOS: dict[str, Callable[[], Pair]] = {
    "a row through a linear layer in int4, torch": int4_row,
    "new rows over a paged cache, torch's attention": attention,
    "a picture, plain torch": picture,
    "an answer in int4, plain torch": answer,
    "a first token in int4, plain torch": first_token,
    "a training step, plain torch": training,
}
