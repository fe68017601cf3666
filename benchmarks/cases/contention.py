"""contention: decode steps beside one busy process of somebody else's, against the same steps alone.

All contenders run as many threads as there are cores, so one of them shares its core with that process: twice
the time is fair, and what a barrier that spins loses on top of it shows here. Target: at most three times.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial

from benchmarks.busy import BusyProcess
from benchmarks.cases.decode import ours
from benchmarks.harness import Row, absent, row
from benchmarks.models import quantization_of, random_model, title
from benchmarks.peers import chosen, llama_cpp
from benchmarks.steps import OURS, Start, begin, end
from owl_fast.engine.placement import pick_device

CONTEXT = 4
ROUNDS, STEPS = 4, 4  # STEPS of each contender alone, then beside the process, ROUNDS times
SETTLE = 0.1  # seconds before: the process comes or goes, and the last contender's threads stop spinning
WHEN = "alone", "beside a busy process"


def run(args: argparse.Namespace) -> list[Row]:
    device = pick_device(args.device)
    model = random_model(args.model, device, quantization=quantization_of(args.quant))
    steps = 1 + ROUNDS * len(WHEN) * STEPS
    starts: dict[str, Start] = {OURS: partial(ours, model, 1, CONTEXT, steps)}
    for scheme in llama_cpp.SCHEMES.get(args.quant, ()):
        peer = partial(llama_cpp.decode, args.gguf, model.config.llama, scheme, "off", CONTEXT, steps)
        starts[f"llama.cpp {scheme}"] = peer
    seconds, failed = measured(chosen(starts, args))
    where = "contention", f"{title(args.model, model)} B1-C{CONTEXT}"
    rows = []
    for name in starts:
        if name in failed:
            rows.append(absent(*where, name, "slowdown", "x", failed[name]))
            continue
        for when in WHEN:
            rates = [1 / value for value in seconds[name][when]]
            rows.append(row(*where, name, when, "tok/s", rates))
        alone, beside = (seconds[name][when] for when in WHEN)
        slowdowns = [value / statistics.median(alone) for value in beside]
        rows.append(row(*where, name, "slowdown", "x", slowdowns))
    return rows


def measured(starts: dict[str, Start]) -> tuple[dict[str, dict[str, list[float]]], dict[str, str]]:
    """Seconds of each contender's steps alone and beside the process, and why others take no part."""
    running, failed = begin(starts)
    seconds: dict[str, dict[str, list[float]]] = {name: {when: [] for when in WHEN} for name in running}
    with BusyProcess() as process:
        for _ in range(ROUNDS):
            for when in WHEN:
                (process.pause if when == WHEN[0] else process.go_on)()
                for name, steps in running.items():
                    time.sleep(SETTLE)
                    seconds[name][when] += [next(steps) for _ in range(STEPS)]
    end(running)
    return seconds, failed
