"""Models of given sizes with random weights, the engine around them, and what they have to do at least."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import ROOT
from owl_fast.checkpoints.load import empty_model
from owl_fast.config import LlamaConfig, OwlConfig, Quantization
from owl_fast.engine.blocks import blocks_for
from owl_fast.engine.engine import Engine
from owl_fast.engine.kv_cache import KVCache, position_bytes
from owl_fast.engine.placement import pick_dtype
from owl_fast.images import ImageProcessor
from owl_fast.kernels.weights import Int4Weight, Int8Weight
from owl_fast.models.batch import PackedBatch, PagedCache
from owl_fast.models.layers import Linear, RMSNorm, init_weights
from owl_fast.models.owl import Owl
from owl_fast.prompts import IMAGE_ID, encode, raw_pieces
from owl_fast.quantization.int4 import short_scales
from owl_fast.quantization.whole import lay_out_
from owl_fast.tokenizer import Tokenizer

NANO = ROOT / "owl_fast/assets/owl-nano"
NAMES = ("7b-random", "nano", "tiny")  # or a folder with a config.json


def config_of(name: str) -> OwlConfig:
    full = OwlConfig.mplug_owl_7b()
    if name == "7b-random":
        return full
    if name == "nano":
        return OwlConfig.from_file(NANO / "config.json")
    if name != "tiny":
        return OwlConfig.from_file(Path(name) / "config.json")
    return replace(
        full,
        vision=replace(full.vision, hidden_size=64, intermediate_size=128, num_hidden_layers=2),
        abstractor=replace(
            full.abstractor, hidden_size=64, encoder_hidden_size=64, intermediate_size=96, num_hidden_layers=2
        ),
        llama=replace(
            full.llama,
            vocab_size=1024,
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
        ),
    )


def quantization_of(quant: str) -> Quantization | None:
    """What --quant asks for."""
    return None if quant == "none" else Quantization(quant)


@functools.cache
def random_model(
    name: str, device: torch.device, positions: int = 4096, quantization: Quantization | None = None
) -> Owl:
    """Seeded weights made on the device, in the dtype an engine takes there; one model for all cases."""
    config = config_of(name).with_context(positions)
    return made(config, pick_dtype("auto", device, config), device, quantization)


def part_of(
    name: str, device: torch.device, *, layers: int, pictures: bool, vision: str | None = None
) -> Owl:
    """Some layers of the language model, pictures or not, in the dtype of the whole. vision: "int8"."""
    config = config_of(name).with_context(4096)
    fewer = replace(config, llama=replace(config.llama, num_hidden_layers=layers))
    if not pictures:
        fewer = replace(
            fewer,
            vision=replace(config.vision, num_hidden_layers=1),
            abstractor=replace(config.abstractor, num_hidden_layers=1),
        )
    quantization = None if vision is None else Quantization(None, vision)
    return made(fewer, pick_dtype("auto", device, config), device, quantization)


def made(
    config: OwlConfig,
    dtype: torch.dtype,
    device: torch.device,
    quantization: Quantization | None = None,
    laid_out: bool = True,
) -> Owl:
    """Random weights, those that are quantized made so: quantizing a large model takes minutes. laid_out: as
    inference wants them."""
    model = empty_model(replace(config, quantization=quantization)).to(dtype).to_empty(device=device)
    init_weights(model, seed=0)
    if quantization is not None:
        torch.manual_seed(0)
        for linear, scheme in model.quantized_slots(quantization):
            linear.put(random_weight(linear.weight.shape, scheme, quantization.group, device))
        if laid_out:
            lay_out_(model)
    return model.requires_grad_(False).eval()


def random_weight(
    shape: Sequence[int], scheme: str, group: int, device: torch.device
) -> Int8Weight | Int4Weight:
    """A weight (N, K) that deviates by about 0.02, as those of init_weights do; scales as the quantizer's."""
    outputs, inputs = shape
    if scheme == "int8":
        q = _random_bytes(outputs * inputs, device).view(torch.int8).view(outputs, inputs)
        return Int8Weight(q, (0.75 + torch.rand(outputs, device=device) / 2) * (0.02 / 74))
    scale = (0.75 + torch.rand(outputs, -(-inputs // group), device=device) / 2) * (0.02 / 4.6)
    q = _random_bytes(outputs * -(-inputs // 2), device).view(outputs, -1)
    return Int4Weight(q, short_scales(scale).half(), inputs, group)


def _random_bytes(count: int, device: torch.device) -> Tensor:
    """(count,) uint8; eight are drawn at a time, which is as many times as fast."""
    whole = torch.empty(-(-count // 8), dtype=torch.int64, device=device)
    return whole.random_(-(2**63), None).view(torch.uint8)[:count]


def engine(model: Owl, max_context: int, max_batch: int = 1, **settings: Any) -> Engine:
    """One that computes all prompts of a batch in one step, so that all answers begin together, and all of
    each: the cases ask the same again and again, and would find it in the caches."""
    return usual_engine(
        model,
        max_context,
        max_batch,
        step_tokens=max_context * max_batch,
        prefix_cache=False,
        picture_cache_mb=0,
        **settings,
    )


def usual_engine(model: Owl, max_context: int, max_batch: int, **settings: Any) -> Engine:
    """One as it is unless told otherwise."""
    tokenizer = Tokenizer.from_file(NANO / "tokenizer.model")
    processor = ImageProcessor(size=model.config.vision.image_size)
    return Engine(model, tokenizer, processor, max_context=max_context, max_batch=max_batch, **settings)


def prompt_of(tokens: int, engine: Engine, picture: bool = False) -> str:
    """A prompt of so many text tokens (its first included), behind a picture if one is wanted."""
    start = "<image>" if picture else ""
    rows = engine.config.image_rows if picture else 0
    one = len(encode(raw_pieces(f"{start}\n"), engine.tokenizer, engine.config.image_rows)) - rows
    return start + "\n" * (1 + tokens - one)


def shapes(name: str, device: torch.device, quant: str) -> Owl:
    """The model without weights, in the dtype an engine takes there."""
    config = config_of(name)
    quantized = replace(config, quantization=quantization_of(quant))
    return empty_model(quantized).to(pick_dtype("auto", device, config))


def title(name: str, model: Owl) -> str:
    """Of the model in a row: "7b-random bfloat16 int4"."""
    quantization = model.config.quantization
    held = "" if quantization is None else f" {quantization}"
    return f"{Path(name).name} {str(model.dtype).removeprefix('torch.')}{held}"


def pixels_of(model: Owl) -> Tensor:
    """A normalised picture (3, S, S) on the model's device."""
    side = model.config.vision.image_size
    return torch.randn(3, side, side, generator=torch.Generator().manual_seed(0)).to(model.device)


def picture_prompt(model: Owl, text_tokens: int) -> Callable[[], PackedBatch]:
    """A picture and text behind it, without an engine; each call encodes the picture anew."""
    pixels, rows = pixels_of(model)[None], model.config.image_rows
    ids = [IMAGE_ID] * rows + [5] * text_tokens
    batch = PackedBatch.from_sequences([ids], pixels.new_empty(rows, 0), device=model.device)
    return lambda: replace(batch, visual_embeds=model.encode_images(pixels)[0])


def behind_cache(batch: PackedBatch, llama: LlamaConfig, dtype: torch.dtype) -> PackedBatch:
    """The same whole sequences, their keys and values read back from a paged cache of this dtype."""
    lengths = [end - start for start, end in pairwise(batch.bounds)]
    blocks, device = blocks_for(max(lengths)), batch.token_ids.device
    cache = KVCache(llama, len(lengths) * blocks, dtype, device)
    first = torch.arange(len(lengths), device=device) * blocks * cache.block_size
    paged = PagedCache(
        layers=cache.layers,
        slot_mapping=first.repeat_interleave(torch.tensor(lengths, device=device)) + batch.positions,
        block_tables=torch.arange(len(lengths) * blocks, dtype=torch.int32, device=device).view(-1, blocks),
        context_lens=torch.tensor(lengths, dtype=torch.int32, device=device),
        lengths=tuple(lengths),
    )
    return replace(batch, cache=paged)


@dataclass(frozen=True)
class Effort:
    """What has to be done at least: bytes read, and multiplications and additions, int8 ones where a CPU
    may round to them."""

    nbytes: float
    flops: float
    int8: bool = False

    def __add__(self, other: Effort) -> Effort:
        return Effort(self.nbytes + other.nbytes, self.flops + other.flops, self.int8 or other.int8)


def picture_effort(model: Owl) -> Effort:
    """One picture through the vision tower and the abstractor."""
    vision, abstractor, queries = model.config.vision, model.config.abstractor, model.config.num_query_tokens
    rows, width = 1 + vision.num_patches, vision.hidden_size
    keys = queries + rows
    tower = rows * width * (4 * width + 2 * vision.intermediate_size + 2 * rows)
    gather = queries * width * (2 * width + 3 * abstractor.intermediate_size + 2 * keys) + keys * 2 * width**2
    patches = vision.num_patches * width * 3 * vision.patch_size**2
    to_language = queries * width * model.config.llama.hidden_size
    layers = vision.num_hidden_layers * tower + abstractor.num_hidden_layers * gather
    products = patches + layers + to_language
    parts = (model.vision_model, model.abstractor)
    return Effort(sum(p.nbytes for part in parts for p in part.parameters()), 2 * products)


def language_effort(
    model: Owl, rows: int, answers: int = 1, cached: int = 0, kept_as: torch.dtype | None = None
) -> Effort:
    """`rows` new rows of `answers` sequences of equal length, each behind `cached` rows of its own, held in
    the cache as kept_as (None: the model's dtype)."""
    llama, body = model.config.llama, model.language_model.model
    linear = sum(prod(m.weight.shape) for m in body.layers.modules() if isinstance(m, Linear))
    each = rows // answers
    pairs = answers * (each * cached + each * (each + 1) // 2)  # of a row and a key it sees
    attention = 2 * llama.num_hidden_layers * llama.hidden_size * pairs
    head = answers * llama.vocab_size * llama.hidden_size
    kept = position_bytes(llama, kept_as or model.dtype)
    weights = sum(_stored(m, model) for m in model.language_model.modules() if isinstance(m, Linear))
    norms = sum(m.weight.nbytes for m in body.modules() if isinstance(m, RMSNorm))
    int8 = model.config.quantization is not None and model.config.quantization.scheme is not None
    flops = 2 * (rows * linear + attention + head)
    return Effort(weights + norms + answers * cached * kept, flops, int8)


def answer_efforts(
    model: Owl, answers: int, context: int, tokens: int, kept_as: torch.dtype | None = None
) -> list[Effort]:
    """Of the steps after the first token of each answer, behind prompts of `context` rows."""
    cached = range(context, context + tokens - 1)
    return [language_effort(model, answers, answers, rows, kept_as) for rows in cached]


def _stored(linear: Linear, model: Owl) -> int:
    """Bytes of a linear layer of the language model in its smallest arrangement: int4's scales fit a byte."""
    outputs, inputs = linear.weight.shape
    quantization = model.config.quantization
    scheme = None if quantization is None else quantization.scheme
    if quantization is None or scheme is None:
        return outputs * inputs * model.dtype.itemsize
    if scheme == "int8":
        return outputs * (inputs + 4)
    return outputs * (-(-inputs // 2) + -(-inputs // quantization.group))
