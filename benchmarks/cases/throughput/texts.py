"""Prompts of text: many requests against one, beside transformers and llama.cpp."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import models
from benchmarks.cases.throughput.load import Answer, Load, Prompts, Times, measured, steps, times_of
from benchmarks.harness import Row, absent, row
from benchmarks.peers import chosen, few_layers, llama_cpp, llama_cpp_batch, transformers_llama
from benchmarks.steps import OURS, StartOf, TakenOf
from benchmarks.suites import sized
from benchmarks.timing import machine, release
from owl_fast.engine.inputs import PreparedPrompt
from owl_fast.engine.kv_cache import cache_dtype
from owl_fast.engine.placement import pick_device
from owl_fast.models.owl import Owl

LOADS = {
    "7b-random": [Load(answers, context, 64, 5) for context in (512, 2048) for answers in (1, 8, 64)],
    "nano": [Load(answers, context, 64, 7) for context in (8, 128, 512) for answers in (1, 2, 4, 8, 16, 32)],
    "quick": [Load(answers, 64, 32, 3) for answers in (1, 2, 4, 8, 16)],
    "tiny": [Load(answers, 32, 8, 3) for answers in (1, 8)],
}
CPU_LOADS = LOADS | {
    "7b-random": [Load(answers, *rest, 3) for rest in ((8, 32), (128, 16)) for answers in (1, 8)]
}
SETTINGS: dict[str, dict[str, Any]] = {OURS: {}, f"{OURS}, int8 cache": {"kv_cache": "int8"}}
GPU_SETTINGS = SETTINGS | {f"{OURS}, exact": {"exact": True}}  # a CPU is always exact
MANY = 8  # sequences, held against one
AGAINST_ONE = f"{MANY} sequences against 1", f"{MANY} sequences against 1, decoding"
DECODING = "decoding"  # tokens that come after every answer has begun, in the time after that

Answering = Callable[[], AbstractContextManager[Answer]]
Together = Callable[
    [Prompts, int], tuple[float, float]
]  # seconds to the first tokens, all at once; of the others
Taken = TakenOf[Times]


def run(args: argparse.Namespace) -> list[Row]:
    device = pick_device(args.device)
    model = models.random_model(args.model, device, quantization=models.quantization_of(args.quant))
    loads = sized(CPU_LOADS if device.type == "cpu" else LOADS, args)
    taken = {load: _taken(model, args, load) for load in tqdm(loads, "throughput", leave=False, disable=None)}
    title = models.title(args.model, model)
    rows = [found for load in loads for found in _rows(title, model, args, load, taken[load])]
    return rows + _against_one(title, taken)


def limits(model: Owl, load: Load, kept_as: torch.dtype) -> tuple[float, float]:
    """Tokens/s that the machine allows at most with such a cache: with the prompts, and decoding."""
    answers, context, tokens, _ = load
    of = machine(model.device).floor
    prompts = of(models.language_effort(model, answers * context, answers))
    rest = sum(map(of, models.answer_efforts(model, answers, context, tokens, kept_as)))
    return answers * tokens / (prompts + rest), answers * (tokens - 1) / rest


def _taken(model: Owl, args: argparse.Namespace, load: Load) -> Taken:
    """What each contender's rounds took."""
    release(model.device)
    settings = SETTINGS if model.device.type == "cpu" else GPU_SETTINGS
    contenders: dict[str, Answering] = {
        name: partial(_ours, model, load, given) for name, given in settings.items()
    }
    contenders |= _peers(model, args, load)
    vocabulary, bos = model.config.llama.vocab_size, model.config.llama.bos_token_id
    starts: dict[str, StartOf[Times]] = {
        name: partial(steps, answering, load, vocabulary, bos, model.device)
        for name, answering in contenders.items()
    }
    starts = chosen(starts, args)
    return measured(starts, model.device)


@contextmanager
def _ours(model: Owl, load: Load, settings: Mapping[str, Any]) -> Iterator[Answer]:
    asked = models.usual_engine(model, load.context + load.tokens, load.answers, **settings)
    yield lambda prompts, tokens: times_of(asked, [PreparedPrompt(ids, []) for ids in prompts], tokens)


def _peers(model: Owl, args: argparse.Namespace, load: Load) -> dict[str, Answering]:
    llama = model.config.llama
    if model.config.quantization is None:
        return {transformers_llama.GENERATE: lambda: nullcontext(_timed(transformers_llama.generator(model)))}
    few = few_layers.name(llama, transformers_llama.GENERATE)
    found: dict[str, Answering] = {
        few: lambda: nullcontext(_timed(few_layers.generator(args.model, model.device)))
    }
    if model.device.type == "cpu":
        size = load.context + load.tokens, load.answers
        found |= {
            llama_cpp_batch.name(scheme): partial(_llama_cpp, args.gguf, llama, scheme, *size)
            for scheme in llama_cpp.SCHEMES[args.quant]
        }
    return found


@contextmanager
def _llama_cpp(*args: Any) -> Iterator[Answer]:
    with llama_cpp_batch.answers(*args) as together:
        yield _timed(together)


def _timed(together: Together) -> Answer:
    return lambda prompts, tokens: Times(*together(prompts, tokens), len(prompts) * (tokens - 1))


def _rows(title: str, model: Owl, args: argparse.Namespace, load: Load, taken: Taken) -> list[Row]:
    shape = f"{title} B{load.answers}-C{load.context}"
    notes = {llama_cpp_batch.name(scheme): scheme for scheme in llama_cpp.SCHEMES.get(args.quant, ())}
    metrics = f"{load.tokens} tokens each", DECODING
    rows = []
    for name, found in taken.items():
        where = "throughput", shape, name
        if isinstance(found, str):
            rows.append(absent(*where, metrics[0], "tok/s", found))
            continue
        kept_as = cache_dtype(GPU_SETTINGS.get(name, {}).get("kv_cache", "auto"), model.dtype)
        scheme = notes.get(name)
        note = llama_cpp_batch.note(args.gguf, model.config.llama, scheme) if scheme else ""
        for metric, values, most in zip(
            metrics, _rates(load, found), limits(model, load, kept_as), strict=True
        ):
            rows.append(row(*where, metric, "tok/s", values, most, note))
    return rows


def _rates(load: Load, found: list[Times]) -> tuple[list[float], list[float]]:
    """Tokens/s of each round: with the prompts, and decoding."""
    whole = [load.answers * load.tokens / times.whole for times in found]
    return whole, [times.tokens / times.rest for times in found]


def _against_one(title: str, taken: Mapping[Load, Taken]) -> list[Row]:
    """How many times the tokens/s of one sequence several have, of each contender."""
    rows = []
    for load in taken:
        alone = load._replace(answers=1)
        if load.answers != MANY or alone not in taken:
            continue
        for name, found in taken[load].items():
            one = taken[alone][name]
            if isinstance(found, str) or isinstance(one, str):
                continue
            rates = zip(AGAINST_ONE, _rates(load, found), _rates(alone, one), strict=True)
            for metric, many, single in rates:
                gain = statistics.median(many) / statistics.median(single)
                where = "throughput", f"{title} C{load.context}", name
                rows.append(row(*where, metric, "times as much", [gain]))
    return rows
