"""train: steps of both stages beside transformers and peft, on the same shapes, samples and adapters.

"owl_fast" is the configuration for which step and peak memory are compared with the peer that checkpoints:
frozen weights in int4, nothing computed a second time. Its other rows say what differs.

Each contender has a process of its own (benchmarks/training.py); all wait for each other and take turns, step
by step. Peak memory: anonymous memory on a CPU, over what the process held before the model was there; on a
GPU what torch allocated. Of the limit: the part of the machine's matrix products that was reached (MFU), over
the products that the step needs at least: nothing that is computed a second time counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import NamedTuple

from tqdm import tqdm

from benchmarks.harness import Row, absent, row
from benchmarks.peers import LEFT_OUT, is_wanted
from benchmarks.timing import machine
from benchmarks.training import CONTENDERS, FEW, OURS, PREFIX, Work, command, tiny
from owl_fast.config import LlamaConfig
from owl_fast.engine.placement import pick_device

CPU_LLAMA = LlamaConfig(
    hidden_size=1024,
    intermediate_size=2816,
    num_hidden_layers=8,
    num_attention_heads=16,
    num_key_value_heads=16,
)
CPU_BATCH, GPU_BATCH = (4, 165, 60), (2, 2048, 1024)  # samples, rows of each, learned rows of each
QUICK_LLAMA, QUICK_BATCH = replace(CPU_LLAMA, num_hidden_layers=4), (2, 65, 24)
STEPS = 7
TENSORS_ALONE = "tensors; a process on a CPU also holds what the C library keeps for later"


class Found(NamedTuple):
    """Of contenders by name: seconds of every step, peak bytes, and why others took no part."""

    taken: dict[str, list[float]]
    peaks: dict[str, int]
    troubles: dict[str, str]


class Process:
    """A contender that waits for its turn."""

    def __init__(self, work: Work, stack: ExitStack) -> None:
        self.process = stack.enter_context(
            subprocess.Popen(
                command(work),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(self.process.kill)
        self.trouble = "" if self._line() == "ready" else self._why()

    def step(self) -> float:
        """Seconds of one step."""
        self._say("step")
        return float(self._line().split()[0])

    def peak(self) -> int:
        self._say("end")
        return int(json.loads(self._line())["peak"])

    def _say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def _why(self) -> str:
        assert self.process.stderr is not None
        *_, last = self.process.stderr.read().strip().splitlines() or ["it ended"]
        return f"{last:.160}"


def run(args: argparse.Namespace) -> list[Row]:
    device = pick_device(args.device)
    rows = []
    for stage in (1, 2):
        llama, batch = (CPU_LLAMA, CPU_BATCH) if device.type == "cpu" else (LlamaConfig(), GPU_BATCH)
        if args.suite == "quick":
            llama, batch = QUICK_LLAMA, QUICK_BATCH
        work = Work("", stage, device.type, llama, *batch)
        rows += measure(tiny(work) if args.model == "tiny" else work, args)
    return rows


def measure(work: Work, args: argparse.Namespace) -> list[Row]:
    """Three rows per contender: tokens/s, peak memory, and the time of a step; of ours the planned memory."""
    llama = work.llama
    all_of_them = FEW if args.suite == "quick" else tuple(CONTENDERS)
    wanted = [name for name in all_of_them if name in OURS or is_wanted(name, args)]
    shape = (
        f"stage {work.stage}, {llama.hidden_size} x {llama.num_hidden_layers} layers, "
        f"{work.samples} x {work.length} rows"
    )
    tokens, rows = work.samples * work.length, []
    limit = tokens * statistics.median(machine(pick_device(work.device)).matmul) / work.flops
    taken, peaks, troubles = measured(work, wanted, STEPS)
    troubles |= dict.fromkeys(set(all_of_them) - set(wanted), LEFT_OUT)
    for name in all_of_them:
        where = "train", shape, name
        if name in troubles:
            rows.append(absent(*where, "throughput", "tok/s", troubles[name]))
            continue
        own = OURS.get(name)
        held = "" if own is None else f"{own.scheme or 'bf16'} weights, layers keep: {own.level}"
        held += f"; {PREFIX} first tokens the same in all samples" * (own is not None and own.shared)
        rows.append(row(*where, "throughput", "tok/s", [tokens / s for s in taken[name]], limit, held))
        rows.append(row(*where, "step", "ms", [1e3 * s for s in taken[name]]))
        rows.append(row(*where, "peak memory", "GB", [peaks[name] / 1e9]))
        if own is not None:
            note = TENSORS_ALONE if work.device == "cpu" else ""
            rows.append(row(*where, "planned memory", "GB", [own.planned(work) / 1e9], note=note))
    return rows


def measured(work: Work, contenders: Sequence[str], steps: int) -> Found:
    """On a GPU one after the other: each has the memory to itself."""
    groups = [tuple(contenders)] if work.device == "cpu" else [(name,) for name in contenders]
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    peaks: dict[str, int] = {}
    troubles: dict[str, str] = {}
    for names in groups:
        with ExitStack() as stack:
            bar = tqdm(names, desc=f"train, stage {work.stage}", leave=False, disable=None)
            running = {name: Process(replace(work, contender=name), stack) for name in bar}
            troubles |= {name: process.trouble for name, process in running.items() if process.trouble}
            for _ in range(steps):
                for name, process in running.items():
                    if name not in troubles:
                        taken[name].append(process.step())
            peaks |= {name: process.peak() for name, process in running.items() if name not in troubles}
    return Found(taken, peaks, troubles)
