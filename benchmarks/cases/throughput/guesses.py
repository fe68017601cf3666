"""Answers guessed on or not: owl-nano as it was trained, asked what it was not trained on, one at a time.

Every engine answers the same dialogues in turns. Besides tokens/s from the call to the last answer, pictures
and prompts included, those of decoding alone: tokens after the first, per second after it.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence

from tqdm import tqdm

from benchmarks.harness import Row, absent, row
from benchmarks.steps import OURS
from benchmarks.suites import sized
from benchmarks.timing import pause
from owl_fast.engine.engine import Engine
from owl_fast.engine.placement import pick_device
from owl_fast.engine.reports import Stats
from recipes.owl_nano import evaluate
from recipes.owl_nano.dialogues import about_picture
from recipes.owl_nano.world import sample_scene

SPECULATION = (0, 4, 8)
SEED, CONTEXT = 11, 512
# Questions of each task, and conversations of at least TURNS questions about a picture.
COUNTS = {"nano": (4, 25), "quick": (1, 6), "tiny": (1, 2)}
TURNS = 3
Case = evaluate.Case


def run(args: argparse.Namespace) -> list[Row]:
    if args.model not in COUNTS:
        return []  # guesses come true by weights that know something
    device = pick_device(args.device)
    engines = {
        _name(rows): Engine.from_pretrained(
            device=device, quant=args.quant, max_context=CONTEXT, max_batch=1, speculation=rows
        )
        for rows in SPECULATION
    }
    questions, talks = sized(COUNTS, args)
    few = 2 if args.model == "tiny" else None
    asked = {
        "questions": evaluate.cases("own", questions, SEED)[:few],
        f"conversations of {TURNS} to 5 questions": conversations(talks),
    }
    held = "" if args.quant == "none" else f" {args.quant}"
    return [
        found
        for kind, cases in asked.items()
        for found in _compared(f"owl-nano{held}, {len(cases) - 1} {kind}", engines, cases, pause(device))
    ]


def conversations(count: int) -> list[Case]:
    """About a held-out picture each."""
    rng = random.Random(SEED)
    found: list[Case] = []
    while len(found) < count:
        dialogue = about_picture(rng, sample_scene(rng, split="heldout"))
        if len(dialogue.turns) >= TURNS:
            drawn = tuple(
                evaluate.DRAWINGS["own"](s, rng, rng.choice(evaluate.SIZES)) for s in dialogue.scenes
            )
            found.append(Case("conversation", dialogue, drawn))
    return found


def _compared(shape: str, engines: dict[str, Engine], cases: Sequence[Case], between: float) -> list[Row]:
    """The first of the cases is to warm up."""
    first, *cases = cases
    for asked in engines.values():
        evaluate.answer_all(asked, [first])
    whole: dict[str, list[float]] = {name: [] for name in engines}
    decoding: dict[str, list[float]] = {name: [] for name in engines}
    before = {name: asked.stats() for name, asked in engines.items()}
    for case in tqdm(cases, shape, leave=False, disable=None):
        for name, asked in engines.items():
            time.sleep(between)
            start, since = time.perf_counter(), asked.stats()
            evaluate.answer_all(asked, [case])
            seconds = time.perf_counter() - start
            rates = _rates(since, asked.stats(), seconds)
            whole[name].append(rates[0])
            decoding[name] += rates[1:]
    rows = []
    for name, asked in engines.items():
        where = "throughput", shape, name
        rows.append(row(*where, "one at a time", "tok/s", whole[name]))
        if decoding[name]:
            rows.append(row(*where, "decoding", "tok/s", decoding[name]))
        if name != OURS:
            rows.append(_came_true(where, before[name], asked.stats()))
    return rows


def _rates(before: Stats, after: Stats, seconds: float) -> list[float]:
    """Tokens/s in all, and of decoding unless every answer was a single token."""
    tokens = after.usage.completion_tokens - before.usage.completion_tokens
    later = tokens - (after.answered - before.answered)
    taken = (after.timings.predicted_ms - before.timings.predicted_ms) / 1e3
    return [tokens / seconds, *([later / taken] if later else [])]


def _came_true(where: tuple[str, str, str], before: Stats, after: Stats) -> Row:
    what = *where, "guesses that came true", "share"
    guesses = after.guesses - before.guesses
    tokens = after.usage.completion_tokens - before.usage.completion_tokens
    if not guesses:
        return absent(*what, "nothing was guessed")
    right = after.guesses_right - before.guesses_right
    return row(*what, [right / guesses], note=f"{guesses} guesses, {tokens} tokens")


def _name(rows: int) -> str:
    return f"{OURS}, speculation {rows}" if rows else OURS
