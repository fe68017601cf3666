"""ops: every operation of benchmarks/cases/ops, beside plain torch and its own peers, in turns.

Of each: microseconds, GB/s or TFLOP/s, and the fraction of what the copy bandwidth and the matmul rate of the
same run allow. A CPU runs the references and leaves out what would take it long; those rows say so. What only
libowl_cpu has, it runs at full size.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping

import torch
from tqdm import tqdm

from benchmarks.cases.ops import CASES, CPU_CASES
from benchmarks.cases.ops.case import Case, Work
from benchmarks.harness import Row, absent
from benchmarks.peers import chosen, plain
from benchmarks.timing import Run, kernel_timer, race
from owl_fast.engine.placement import pick_device
from owl_fast.errors import OwlError

SECONDS, QUICK_SECONDS = 0.2, 0.03  # of measuring, per contender
# A case beyond that takes a small CPU longer than it teaches; so many times less in the quick suite.
CPU_FLOPS, CPU_BYTES, QUICK_SHARE = 5e8, 5e7, 0.3
QUICK = "N4096-K4096-", "L512-"  # the full-size shapes of a CPU that the quick suite measures: the smallest


def run(args: argparse.Namespace) -> list[Row]:
    device, quick = pick_device(args.device), args.suite == "quick"
    measured = [(case, measure) for case in CASES]
    if device.type == "cpu":
        full_size = [case for case in CPU_CASES if not quick or any(text in case.shape for text in QUICK)]
        measured += [(case, measure_on_cpu) for case in full_size]
    asked = [(case, measure) for case, measure in measured if args.only in case.op]
    if not asked:
        known = ", ".join(sorted({case.op for case, _ in measured}))
        raise OwlError(f"--only {args.only}: no such operation; there are {known}")
    rows = [
        measure(case, device, args) for case, measure in tqdm(asked, desc="ops", leave=False, disable=None)
    ]
    return [row for found in rows for row in found]


def measure(case: Case, device: torch.device, args: argparse.Namespace) -> list[Row]:
    """One row per contender; ours must run, a peer may be absent."""
    where = "ops", f"{case.op} {case.shape}"
    planned = case.make(torch.device("meta"))
    if device.type == "cpu" and case.kernel_only:
        return [absent(*where, "owl_fast", "time", "us", "runs on GPUs only")]
    share, others = (
        (QUICK_SHARE, "too large for the quick suite") if args.suite == "quick" else (1.0, "left to GPUs")
    )
    if device.type == "cpu" and (planned.flops > share * CPU_FLOPS or planned.nbytes > share * CPU_BYTES):
        reason = f"{planned.flops / 1e9:.1f} GFLOP and {planned.nbytes / 1e9:.2f} GB are {others}"
        return [absent(*where, "owl_fast", "time", "us", reason)]
    torch.manual_seed(0)
    work = case.make(device)
    plainly = {} if case.kernel_only else {plain.NAME: plain.plain(work.run)}
    return compared(where, device, work, {**plainly, **work.peers}, args)


def measure_on_cpu(case: Case, device: torch.device, args: argparse.Namespace) -> list[Row]:
    """At full size; plain torch would run the same."""
    torch.manual_seed(0)
    work = case.make(device)
    return compared(("ops", f"{case.op} {case.shape}"), device, work, work.peers, args)


def compared(
    where: tuple[str, str],
    device: torch.device,
    work: Work,
    peers: Mapping[str, Run],
    args: argparse.Namespace,
) -> list[Row]:
    runs = {"owl_fast": work.run, **peers}
    contenders = {name: functools.partial(kernel_timer, run, device) for name, run in runs.items()}
    seconds = QUICK_SECONDS if args.suite == "quick" else SECONDS
    return race((*where, "time"), device, work, chosen(contenders, args), seconds)
