"""kernel-resources: every GPU kernel at the 7B shapes, compiled for each kind of GPU. Needs Triton, no GPU.

What it finds is kept in docs/kernel-resources.md. The run fails when a kernel does not compile, spills
registers, takes more shared memory than a block is given, or adds floating-point numbers atomically.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import triton
from tqdm import tqdm

from benchmarks.aot import SHARED_LIMIT, TARGETS, Program, Resources, compile_program, program
from benchmarks.cases.ops.case import Case
from benchmarks.harness import ROOT, Row, row
from owl_fast.errors import OwlError
from owl_fast.kernels.launch import Launch, recording

DOCUMENT = ROOT / "docs/kernel-resources.md"
HEAD = """# What the GPU kernels take

Written by `python benchmarks/run.py kernel-resources` with Triton {version}: every launch of every operation
at the shapes of the 7B model, compiled for six kinds of GPU with the settings it is launched with.

Of each: registers of a thread / KB of shared memory of a block. An empty field: that GPU runs other settings,
which are another line. No kernel spills registers or adds floating-point numbers atomically; one that does,
or that takes more shared memory than the GPU gives a block, makes the command fail.

"""
GPUS = {80: "A100", 86: "RTX 30", 89: "RTX 40", 90: "H200", 100: "B200", 120: "RTX 50"}


@dataclass
class Line:
    """One kernel with one set of settings and argument types: the shapes that need it, and what it takes on
    each target, or the compiler's complaint."""

    kernel: str
    settings: str
    shapes: list[str] = field(default_factory=list)
    programs: dict[int, Program] = field(default_factory=dict)
    found: dict[int, Resources | str] = field(default_factory=dict)


def run(args: argparse.Namespace) -> list[Row]:
    """Rows of shared memory; the document is written, unless --only asked for a part of it."""
    from benchmarks.cases.ops import CASES

    cases = [case for case in CASES if args.only in case.op]
    if not cases:
        known = ", ".join(sorted({case.op for case in CASES}))
        raise OwlError(f"--only {args.only}: no such operation; there are {known}")
    lines = survey(cases, TARGETS)
    if complaints := faults(lines):
        raise OwlError("\n  ".join(["kernels do not fit:", *complaints]))
    if not args.only:
        text = table(lines, TARGETS)
        DOCUMENT.write_text(HEAD.format(version=triton.__version__) + text + "\n", encoding="utf-8")
    return rows(lines)


def rows(lines: Sequence[Line]) -> list[Row]:
    """Shared memory of a block against what the GPU gives it; registers and settings stand in the note. Of
    launches alike but for the types of their arguments, the one that takes most."""
    found: dict[tuple[str, str, str], Row] = {}
    for line in lines:
        for target, taken in line.found.items():
            assert isinstance(taken, Resources)  # else it is a fault
            where = "kernel-resources", f"{line.kernel} {line.shapes[0]}", f"sm_{target} {GPUS[target]}"
            note = f"{taken.registers} registers a thread; {line.settings}"
            limit = SHARED_LIMIT[target] / 1024
            here = row(*where, "shared memory", "KB", [taken.shared / 1024], limit, note)
            found[where] = max(found.get(where, here), here, key=lambda row: row.median or 0.0)
    return list(found.values())


def survey(cases: Sequence[Case], targets: Sequence[int]) -> list[Line]:
    """Every distinct launch of the cases, compiled once per target, on all cores."""
    global _jobs
    lines = recorded(cases, targets)
    _jobs = [(line, target) for line in lines for target in line.programs]
    # Forked children know the jobs already: kernels cannot be sent to another process.
    with multiprocessing.get_context("fork").Pool(min(len(os.sched_getaffinity(0)), len(_jobs))) as pool:
        compiled = pool.imap_unordered(_compile, range(len(_jobs)))
        for job, found in tqdm(compiled, desc="compiling", total=len(_jobs), leave=False, disable=None):
            line, target = _jobs[job]
            line.found[target] = found
    return lines


def recorded(cases: Sequence[Case], targets: Sequence[int]) -> list[Line]:
    """The distinct launches of the cases, not compiled yet."""
    lines: dict[tuple[str, str, str], Line] = {}
    for case, target in itertools.product(cases, targets):
        with recording(target) as recorder:
            case.make(torch.device("meta")).run()
        for launch in recorder.launches:
            found = program(launch, target)
            name, settings, shape = launch.name.strip("_"), _settings(launch), f"{case.op} {case.shape}"
            line = lines.setdefault((name, settings, found.key), Line(name, settings))
            line.programs[target] = found
            if shape not in line.shapes:
                line.shapes.append(shape)
    return list(lines.values())


def faults(lines: Sequence[Line]) -> list[str]:
    """What a user's GPU would refuse or suffer from, one sentence each."""
    said = []
    for line in lines:
        for target, found in line.found.items():
            where = f"{line.kernel} ({line.settings}; {line.shapes[0]}) on sm_{target}"
            if isinstance(found, str):
                said.append(f"{where} does not compile: {found}")
                continue
            if found.spilled:
                said.append(f"{where} spills {found.spilled} bytes a thread")
            if found.shared > SHARED_LIMIT[target]:
                limit = SHARED_LIMIT[target]
                said.append(f"{where} takes {found.shared} bytes of shared memory, of {limit}")
            if found.float_atomics:
                said.append(f"{where} adds floating-point numbers atomically")
    return said


def table(lines: Sequence[Line], targets: Sequence[int]) -> str:
    """In Markdown, columns aligned."""
    head = ["kernel", *(f"sm_{target} {GPUS[target]}" for target in targets), "settings", "shapes"]
    body = [
        [
            line.kernel,
            *(_cell(line.found.get(target)) for target in targets),
            line.settings,
            _shapes(line.shapes),
        ]
        for line in lines
    ]
    widths = [max(len(cells[i]) for cells in [head, *body]) for i in range(len(head) - 1)]
    rows = [head, ["-" * width for width in (*widths, len(head[-1]))], *body]
    return "\n".join(f"| {' | '.join(map(str.ljust, cells, (*widths, 0)))} |" for cells in rows)


def _shapes(shapes: Sequence[str]) -> str:
    """Each operation named once: "rms_norm N1-H4096-bf16, N2048-H4096-bf16"."""
    by_operation: dict[str, list[str]] = {}
    for shape in shapes:
        operation, _, size = shape.rpartition(" ")
        by_operation.setdefault(operation, []).append(size)
    return "; ".join(f"{operation} {', '.join(sizes)}" for operation, sizes in by_operation.items())


def _cell(found: Resources | str | None) -> str:
    if found is None or isinstance(found, str):
        return "" if found is None else "does not compile"
    text = f"{found.registers} / {found.shared / 1024:.1f}"
    text += f", spills {found.spilled} B" if found.spilled else ""
    return text + (", float atomics" if found.float_atomics else "")


def _settings(launch: Launch) -> str:
    return " ".join(f"{name}={value}" for name, value in launch.settings.items())


_jobs: list[tuple[Line, int]] = []


def _compile(job: int) -> tuple[int, Resources | str]:
    """In a child process. An exception of the compiler may not survive the way back, its words do."""
    line, target = _jobs[job]
    try:
        return job, compile_program(line.programs[target])
    except Exception as error:
        return job, f"{type(error).__name__}: {' '.join(str(error).split())[-400:]}"
