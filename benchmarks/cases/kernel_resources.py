"""Every GPU kernel at the 7B shapes, compiled for each kind of GPU: registers, spills, shared memory."""

from __future__ import annotations

import argparse

import torch
from tqdm import tqdm

from benchmarks.harness import Row, row


def run(args: argparse.Namespace) -> list[Row]:
    """Needs no GPU, but Triton. A launch that comes more than once is compiled once."""
    from benchmarks.aot import SHARED_LIMIT, TARGETS, compile_launch
    from benchmarks.cases.ops import CASES
    from owl_fast.kernels.launch import recording

    rows: list[Row] = []
    for target in TARGETS:
        for case in tqdm(CASES, desc=f"compute capability {target}", leave=False):
            work = case.make(torch.device("meta"))
            with recording(target) as recorder:
                work.run()
            for launch in recorder.launches:
                found = compile_launch(launch, target)
                where = "kernel-resources", f"{case.shape} sm_{target}", found.kernel
                rows += [
                    row(*where, "registers", "", [found.registers]),
                    row(*where, "spilled", "bytes", [found.spilled]),
                    row(*where, "shared", "bytes", [found.shared], SHARED_LIMIT[target]),
                    row(*where, "float atomics", "", [found.float_atomics]),
                ]
    return rows
