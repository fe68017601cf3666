"""What all tests share: few threads, the reference numbers, the native library, and who is skipped why."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when kernels are imported: without a GPU they run interpreted

from owl_fast import native
from owl_fast.kernels.linear_cpu import paths
from tests.kernels.interpreter import repair

# Tests are small: more threads only wait for each other, and results stay the same on every machine.
torch.set_num_threads(min(2, torch.get_num_threads()))

# Background jobs of a shell inherit that Ctrl-C is ignored, and tests that press it would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before -m is looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With a GPU the tests of kernels run there and count among those of `-m gpu`."""
    skip = pytest.mark.skip(reason="needs a CUDA device; torch sees none")
    for item in items:
        if torch.cuda.is_available():
            if "device" in getattr(item, "fixturenames", ()):
                item.add_marker("gpu")
        elif item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels run: the GPU, or, without one, the CPU through Triton's interpreter."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    repair()
    return torch.device("cpu")


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Every fresh tensor is full of NaN (integers: of their largest value) until something is written."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="session")
def cpu_library() -> ctypes.CDLL:
    """libowl_cpu; tests of its operations are skipped in a plain checkout where it is not built."""
    found = native.status()
    if found.library is None:
        pytest.skip(f"{found.reason}; `make native` builds it")
    return found.library


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, str], Path]:
    """The ONNX file of one of export.exports.MODELS, a part and a dtype, made once."""
    from tests.export.exports import MODELS

    @functools.cache
    def file(name: str, part: str, dtype: str) -> Path:
        out = tmp_path_factory.mktemp("exported") / f"{name}-{part}-{dtype}"
        flags = ("--int8",) if dtype == "int8" else ("--dtype", dtype)
        return MODELS[name].export(out, "--part", part, *flags)

    return file


@pytest.fixture(params=["avx512_bf16", "avx512_vnni", "avx_vnni", "avx2", "neon_dotprod", "portable"])
def cpu_path(request: pytest.FixtureRequest, cpu_library: ctypes.CDLL) -> int:
    """Each instruction set this machine has: a place in linear_cpu.paths()."""
    if request.param not in paths(cpu_library):
        pytest.skip(f"this machine has no {request.param}")
    return paths(cpu_library).index(request.param)
