"""What all tests share: few threads, the reference numbers, the native library, and who is skipped why."""

from __future__ import annotations

import ctypes
import signal
from pathlib import Path

import pytest
import torch

from owl_fast import native

# Tests are small: more threads only wait for each other, and results stay the same on every machine.
torch.set_num_threads(min(2, torch.get_num_threads()))

# Background jobs of a shell inherit that Ctrl-C is ignored, and tests that press it would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device; torch sees none")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """tests/golden: the original's numbers (README there)."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def cpu_library() -> ctypes.CDLL:
    """libowl_cpu; tests of its operations are skipped in a plain checkout where it is not built."""
    found = native.status()
    if found.library is None:
        pytest.skip(f"{found.reason}; `make native` builds it")
    return found.library
