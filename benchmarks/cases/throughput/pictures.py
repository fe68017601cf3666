"""Requests with a picture each, all different or all the same, with the caches and without."""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial

import torch

from benchmarks import models
from benchmarks.cases.throughput.load import FIRST_ID, measured, times_of
from benchmarks.harness import Row, absent, row
from benchmarks.steps import OURS, Start, Steps
from benchmarks.suites import sized
from benchmarks.timing import machine, release
from owl_fast.engine.engine import Engine
from owl_fast.engine.inputs import PreparedPrompt
from owl_fast.engine.placement import pick_device
from owl_fast.models.owl import Owl
from owl_fast.prompts import IMAGE_ID

ASKED, TEXT, TOKENS = 8, 32, 16  # requests, positions of text in each (the first id among them), new tokens
ROUNDS = {"7b-random": 3, "nano": 7, "quick": 3, "tiny": 2}
SETTINGS = {OURS: {}, f"{OURS}, no caches": {"prefix_cache": False, "picture_cache_mb": 0}}


def run(args: argparse.Namespace) -> list[Row]:
    device = pick_device(args.device)
    model = models.random_model(args.model, device, quantization=models.quantization_of(args.quant))
    return [
        found
        for shared in (False, True)
        for found in _measure(model, models.title(args.model, model), sized(ROUNDS, args), shared)
    ]


def prompts(model: Owl, generator: torch.Generator, shared: bool) -> list[PreparedPrompt]:
    """New random pictures and questions. shared: one picture for all."""
    side, llama = model.config.vision.image_size, model.config.llama
    pixels = [torch.randn(3, side, side, generator=generator) for _ in range(1 if shared else ASKED)]
    start = [llama.bos_token_id, *[IMAGE_ID] * model.config.image_rows]
    asked = torch.randint(FIRST_ID, llama.vocab_size, (ASKED, TEXT - 1), generator=generator).tolist()
    return [
        PreparedPrompt(start + question, [pixels[index % len(pixels)]])
        for index, question in enumerate(asked)
    ]


def floor(model: Owl, shared: bool) -> float:
    """Seconds it takes at least; what requests share has to be done once."""
    of, rows = machine(model.device).floor, model.config.image_rows
    picture, context = of(models.picture_effort(model)), rows + TEXT
    answers = sum(map(of, models.answer_efforts(model, ASKED, context, TOKENS)))
    if not shared:
        return ASKED * picture + of(models.language_effort(model, ASKED * context, ASKED)) + answers
    begin = models.language_effort(model, rows + 1)
    questions = models.language_effort(model, ASKED * (TEXT - 1), ASKED, cached=rows + 1)
    # One step could do both: the weights are read once.
    return picture + of(replace(begin, flops=begin.flops + questions.flops)) + answers


def _measure(model: Owl, title: str, rounds: int, shared: bool) -> list[Row]:
    release(model.device)
    context = model.config.image_rows + TEXT + TOKENS
    engines = {
        name: models.usual_engine(model, context, ASKED, **settings) for name, settings in SETTINGS.items()
    }
    starts: dict[str, Start] = {
        name: partial(_steps, asked, rounds, shared) for name, asked in engines.items()
    }
    taken = measured(starts, model.device)
    limit = ASKED * TOKENS / floor(model, shared)
    shape = f"{title} {ASKED} requests, {'one picture' if shared else f'{ASKED} pictures'}"
    rows = []
    for name, found in taken.items():
        where = "throughput", shape, name, f"{TOKENS} tokens each", "tok/s"
        if isinstance(found, str):
            rows.append(absent(*where, found))
        else:
            rates = [ASKED * TOKENS / seconds for seconds in found]
            rows.append(row(*where, rates, limit, _hits(engines[name])))
    return rows


def _steps(asked: Engine, rounds: int, shared: bool) -> Steps:
    """Seconds of each round, behind one to warm up."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(1 + rounds):
        yield times_of(asked, prompts(asked.model, generator, shared), TOKENS).whole


def _hits(asked: Engine) -> str:
    stats = asked.stats()
    return (
        f"in the caches: {stats.pictures_cached} of {stats.pictures} pictures, "
        f"{stats.usage.cached_tokens} of {stats.usage.prompt_tokens} positions of prompts"
    )
