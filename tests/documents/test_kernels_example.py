"""The example of docs/kernels.md is added to the house as it stands, and the test it brings runs here."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch

from owl_fast import ops
from owl_fast.kernels.launch import recording
from tests.documents.file_blocks import ROOT, module_of, path_of

pytest.importorskip("triton")

GUIDE = (ROOT / "docs/kernels.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", GUIDE, re.M | re.S)
FILES = {path: block for block in BLOCKS if (path := path_of(block))}
COMPILED = """
from benchmarks.cases import kernel_resources as case
from owl_fast import ops
from tests.documents.test_kernels_example import bench, chosen
ops.relu_squared = chosen.relu_squared
lines = case.survey(bench.CASES, case.TARGETS)
assert {target for line in lines for target in line.found} == set(case.TARGETS)
assert not case.faults(lines), case.faults(lines)
"""


kernel, chosen, tests, bench = (module_of(path, block) for path, block in FILES.items())
globals().update({name: test for name, test in vars(tests).items() if name.startswith("test_")})


@pytest.fixture(autouse=True)
def _in_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "relu_squared", chosen.relu_squared, raising=False)


def test_the_guide_shows_every_file() -> None:
    assert list(FILES) == [
        "kernels/relu_squared.py",
        "owl_fast/ops.py",
        "tests/kernels/test_relu_squared.py",
        "benchmarks/cases/ops/relu_squared.py",
    ]
    assert {name for name in globals() if name.startswith("test_triton")} >= {
        "test_triton_matches_float64",
        "test_triton_refuses_what_does_not_fit",
    }


@pytest.mark.parametrize("case", bench.CASES, ids=lambda case: case.shape)
def test_the_benchmark_launches_it(case) -> None:
    with recording() as recorder:
        work = case.make(torch.device("meta"))
        work.run()
    rows = int(case.shape[1 : case.shape.index("-")])
    backward = "backward" in case.op
    names = ["_relu_squared_fwd_kernel", "_relu_squared_bwd_kernel"][: 1 + backward]
    assert [launched.name for launched in recorder.launches] == names
    assert {launched.grid for launched in recorder.launches} == {(rows, 6)}  # tiles of 2048, 11008 columns
    assert work.nbytes == (5 if backward else 2) * rows * 11008 * 2


@pytest.mark.slow
def test_it_compiles_for_every_gpu() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILED]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
