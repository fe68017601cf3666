"""decode: tokens/s of running answers, all rows of a batch together, behind prompts of equal length.

The limit is the bandwidth of the same run over the bytes each step must read: the weights once, and the keys
and values of every row. On a CPU contenders take turns, step by step; on a GPU each has the memory to itself.
"""

from __future__ import annotations

import argparse
import time
from functools import partial

from tqdm import tqdm

from benchmarks.harness import Row, absent, row
from benchmarks.models import engine, language_effort, prompt_of, quantization_of, random_model, title
from benchmarks.peers import chosen, compiled, few_layers, llama_cpp, plain, transformers_llama
from benchmarks.steps import Start, Steps, alone, in_turns
from benchmarks.suites import sized
from benchmarks.timing import machine, pause, release, wall
from owl_fast.engine.placement import pick_device
from owl_fast.models.owl import Owl

POINTS = {
    "7b-random": [(answers, context) for answers in (1, 8, 64) for context in (512, 2048)],
    "nano": [(1, 128), (8, 128)],
    "quick": [(1, 128), (4, 128), (16, 128)],
    "tiny": [(1, 64), (4, 64)],
}
CPU_POINTS = POINTS | {"7b-random": [(1, 4), (1, 512)]}  # no shorter prompt than 4: depth 0 of others
WARM, STEPS = 8, 32


def run(args: argparse.Namespace) -> list[Row]:
    device = pick_device(args.device)
    model = random_model(args.model, device, quantization=quantization_of(args.quant))
    points = sized(CPU_POINTS if device.type == "cpu" else POINTS, args)
    rows = []
    for index, (answers, context) in enumerate(tqdm(points, desc="decode", leave=False, disable=None)):
        left_out = "takes a minute to compile: left to the first point" if index else ""
        rows += measure(model, args, answers, context, args.no_compile or left_out)
    return rows


def measure(model: Owl, args: argparse.Namespace, answers: int, context: int, left_out: str) -> list[Row]:
    """One row per contender. left_out: why those that compile take no part, if they do not."""
    where = "decode", f"{title(args.model, model)} B{answers}-C{context}"
    release(model.device)
    limit = answers / machine(model.device).floor(language_effort(model, answers, answers, cached=context))
    starts: dict[str, Start] = {"owl_fast": partial(ours, model, answers, context, STEPS)}
    if model.config.quantization is None:
        starts |= dense_peers(model, answers, context, left_out)
    elif model.device.type == "cpu":
        starts |= quantized_peers(model, args, answers, context)
    else:
        starts[plain.NAME] = partial(plain_steps, model, answers, context)
    starts = chosen(starts, args)
    if model.device.type == "cpu":
        taken = in_turns(starts, pause(model.device))
    else:
        taken = alone(starts, model.device)
    rows = []
    for name, found in taken.items():
        if isinstance(found, str):
            rows.append(absent(*where, name, "throughput", "tok/s", found))
        else:
            rates = [answers / seconds for seconds in found]
            rows.append(row(*where, name, "throughput", "tok/s", rates, limit))
    return llama_cpp.noted(rows, args.gguf, model.config.llama)


def dense_peers(model: Owl, answers: int, context: int, left_out: str) -> dict[str, Start]:
    theirs = partial(transformers_llama.decode, model, answers, context, STEPS)
    return {
        plain.NAME: partial(plain_steps, model, answers, context),
        transformers_llama.EAGER: partial(theirs, static=False),
        transformers_llama.STATIC: left_out or partial(theirs, static=True),
        compiled.NAME: left_out or partial(compiled_references, model, answers, context),
    }


def quantized_peers(model: Owl, args: argparse.Namespace, answers: int, context: int) -> dict[str, Start]:
    """Those of a CPU. Plain torch would write every weight out dense in every step."""
    starts: dict[str, Start] = {
        llama_cpp.name(scheme, flash): partial(
            llama_cpp.decode, args.gguf, model.config.llama, scheme, flash, context, STEPS
        )
        if answers == 1
        else "one sequence at a time here"
        for scheme in llama_cpp.SCHEMES[args.quant]
        for flash in llama_cpp.FLASH
    }
    few = few_layers.name(model.config.llama)
    return starts | {few: partial(few_layers.decode, args.model, model.device, answers, context, STEPS)}


def ours(model: Owl, answers: int, context: int, steps: int) -> Steps:
    """Seconds of each step of an engine, once all answers have begun."""
    tokens = WARM + steps + 2
    asked = engine(model, max_context=context + tokens, max_batch=answers)
    prompt = prompt_of(context, asked)
    streams = [
        asked.stream(prompt, max_tokens=tokens, temperature=0.0, ignore_eos=True) for _ in range(answers)
    ]
    try:
        for stream in streams:
            next(stream)
        for step in range(WARM + steps):
            start = time.perf_counter()
            next(streams[-1])  # whose token comes with everybody's
            if step >= WARM:
                yield time.perf_counter() - start
    finally:
        for stream in streams:
            stream.close()


def plain_steps(model: Owl, answers: int, context: int) -> Steps:
    return plain.steps(ours(model, answers, context, STEPS))


def compiled_references(model: Owl, answers: int, context: int) -> Steps:
    step = compiled.decode_step(model, answers, context)
    for _ in range(WARM):
        step()
    for _ in range(STEPS):
        yield wall(step, model.device)
