"""Every launch compiled for GPUs that are not here, and the faults this is to find, found.

Kernels are compiled in processes of their own: in this one they may be interpreted.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]
RUN = """
import sys
from pathlib import Path
from benchmarks import run
from benchmarks.cases import kernel_resources, ops
kernel_resources.DOCUMENT = Path({document!r})
kernel_resources.TARGETS = {targets!r}
{more}
sys.exit(run.main(["kernel-resources"]))
"""
LISTED = """
from benchmarks.aot import TARGETS
from benchmarks.cases import kernel_resources as case
from benchmarks.cases.ops import CASES
print(case.table(case.recorded(CASES, TARGETS), TARGETS))
"""
UNFIT = "from tests.kernels import unfit_kernels; ops.CASES = unfit_kernels.CASES"
ALL = (80, 86, 89, 90, 100, 120)


def python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_every_kernel_fits_every_gpu(tmp_path: Path) -> None:
    document = tmp_path / "table.md"
    done = python(RUN.format(document=str(document), targets=ALL, more=""))
    assert done.returncode == 0, done.stderr
    assert triples(document.read_text())


def test_the_document_lists_what_is_launched() -> None:
    listed = python(LISTED)
    assert listed.returncode == 0, listed.stderr
    kept = (ROOT / "docs/kernel-resources.md").read_text(encoding="utf-8")
    assert triples(kept) == triples(listed.stdout), "run `python benchmarks/run.py kernel-resources`"


def test_each_fault_is_found(tmp_path: Path) -> None:
    document = tmp_path / "table.md"
    done = python(RUN.format(document=str(document), targets=(90,), more=UNFIT))
    assert done.returncode == 2, done.stderr
    assert not document.exists()
    for said in (
        "spilling_kernel (BLOCK=8192 num_warps=1; spilling_kernel N8192) on sm_90 spills ",
        "atomic_kernel (BLOCK=256 num_warps=4; atomic_kernel N256) on sm_90 adds floating-point numbers atom",
        "sm_90 takes 262144 bytes of shared memory, of 232448",
        "broken_kernel (BLOCK=256 num_warps=4; broken_kernel N256) on sm_90 does not compile: CompilationErr",
    ):
        assert said in done.stderr
    assert "  fit_kernel" not in done.stderr
    assert "Traceback" not in done.stderr


def triples(table: str) -> list[list[str]]:
    """Kernel, settings and shapes of each line, without the numbers."""
    lines = [line.strip("| ").split("|") for line in table.splitlines() if line.startswith("|")][2:]
    return [[line[0].strip(), *(cell.strip() for cell in line[-2:])] for line in lines]
