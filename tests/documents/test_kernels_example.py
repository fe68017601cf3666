"""The example of docs/kernels.md is added to the house as it stands, and the test it brings runs here.

A block whose first line is a path is that file. It is run as that module, from memory: Triton reads the
source of a kernel through linecache.
"""

from __future__ import annotations

import linecache
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from owl_fast import ops
from owl_fast.kernels.launch import recording

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs/kernels.md").read_text(encoding="utf-8")
FILES = {path: text for text, path in re.findall(r"^```python\n(# (\S+\.py)\n.*?)^```", GUIDE, re.M | re.S)}
COMPILED = """
from benchmarks.cases import kernel_resources as case
from owl_fast import ops
from tests.documents.test_kernels_example import bench, chosen
ops.relu_squared = chosen.relu_squared
lines = case.survey(bench.CASES, case.TARGETS)
assert {target for line in lines for target in line.found} == set(case.TARGETS)
assert not case.faults(lines), case.faults(lines)
"""


def module_of(path: str) -> ModuleType:
    """The module that a block makes; a file that is there gets the block's lines in addition, in a copy."""
    name = path.removesuffix(".py").replace("/", ".")
    name = f"owl_fast.{name}" if name.startswith("kernels.") else name
    module = ModuleType(name)
    if (ROOT / path).is_file():
        vars(module).update(vars(import_module(name)))
    else:
        sys.modules[name] = module
    where = f"docs/kernels.md: {path}"
    linecache.cache[where] = len(FILES[path]), None, FILES[path].splitlines(keepends=True), where
    exec(compile(FILES[path], where, "exec"), vars(module))
    return module


kernel, chosen, tests, bench = map(module_of, FILES)
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
    (launched,) = recorder.launches
    rows = int(case.shape[1 : case.shape.index("-")])
    assert launched.name == "_relu_squared_fwd_kernel"
    assert launched.grid == (rows, 6)  # tiles of 2048 over 11008 columns
    assert work.nbytes == 2 * rows * 11008 * 2


@pytest.mark.slow
def test_it_compiles_for_every_gpu() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILED]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
