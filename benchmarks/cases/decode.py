"""decode: tokens/s of running answers, all rows of a batch together, behind prompts of equal length.

The limit is the copy bandwidth of the same run over the bytes each step must read: the weights once, and the
keys and values of every row.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

from tqdm import tqdm

from benchmarks.harness import Row, absent, row
from benchmarks.models import engine, language_effort, prompt_of, random_model, title
from benchmarks.peers import compiled, plain, transformers_llama
from benchmarks.timing import attempt, machine, release, wall
from owl_fast.engine.placement import pick_device
from owl_fast.models.owl import Owl

POINTS = {
    "7b-random": [(answers, context) for answers in (1, 8, 64) for context in (512, 2048)],
    "nano": [(1, 128), (8, 128)],
    "tiny": [(1, 64), (4, 64)],
}
WARM, STEPS = 8, 32


def run(args: argparse.Namespace) -> list[Row]:
    model = random_model(args.model, pick_device(args.device))
    points = tqdm(POINTS[args.model], desc="decode", leave=False, disable=None)
    rows = []
    for index, (answers, context) in enumerate(points):
        left_out = "takes a minute to compile: left to the first point" if index else ""
        left_out = "left out by --no-compile" if args.no_compile else left_out
        rows += measure(model, args.model, answers, context, left_out)
    return rows


def measure(model: Owl, name: str, answers: int, context: int, left_out: str) -> list[Row]:
    """One row per contender. Each has the memory to itself: with two caches the larger points do not fit.

    left_out: why those that compile take no part, if they do not.
    """
    where = "decode", f"{title(name, model)} B{answers}-C{context}"
    effort = language_effort(model, answers, answers, cached=context)
    release(model.device)
    limit = answers / machine(model.device).floor(effort)
    rows = [_rated(where, "owl_fast", ours(model, answers, context), answers, limit)]
    theirs = partial(transformers_llama.decode, model, answers, context, STEPS)
    peers: dict[str, Callable[[], list[float]]] = {
        plain.NAME: plain.plain(lambda: ours(model, answers, context)),
        transformers_llama.EAGER: partial(theirs, static=False),
        transformers_llama.STATIC: partial(theirs, static=True),
        compiled.NAME: lambda: compiled_references(model, answers, context),
    }
    for peer, seconds in peers.items():
        if "compile" in peer and left_out:
            found: list[float] | str = left_out
        else:
            release(model.device)
            found = attempt(seconds)
        if isinstance(found, str):
            rows.append(absent(*where, peer, "throughput", "tok/s", found))
        else:
            rows.append(_rated(where, peer, found, answers, limit))
    return rows


def ours(model: Owl, answers: int, context: int) -> list[float]:
    """Seconds of each step of an engine, once all answers have begun."""
    tokens = WARM + STEPS + 2
    asked = engine(model, max_context=context + tokens, max_batch=answers)
    prompt = prompt_of(context, asked)
    streams = [
        asked.stream(prompt, max_tokens=tokens, temperature=0.0, ignore_eos=True) for _ in range(answers)
    ]
    for stream in streams:
        next(stream)
    seconds = []
    for _ in range(WARM + STEPS):
        start = time.perf_counter()
        next(streams[-1])  # whose token comes with everybody's
        seconds.append(time.perf_counter() - start)
    for stream in streams:
        stream.close()
    return seconds[WARM:]


def compiled_references(model: Owl, answers: int, context: int) -> list[float]:
    step = compiled.decode_step(model, answers, context)
    return [wall(step, model.device) for _ in range(WARM + STEPS)][WARM:]


def _rated(where: tuple[str, str], contender: str, seconds: list[float], answers: int, limit: float) -> Row:
    return row(*where, contender, "throughput", "tok/s", [answers / value for value in seconds], limit)
