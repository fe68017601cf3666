"""What several tests of kernels ask for."""

from __future__ import annotations

import ctypes

import pytest

from owl_fast.kernels.attention_cpu import paths


@pytest.fixture(params=["avx512_bf16", "avx512", "avx2", "neon", "portable"])
def path(request: pytest.FixtureRequest, cpu_library: ctypes.CDLL) -> int:
    """Each instruction set this machine has for attention and elementwise operations: a place in paths()."""
    if request.param not in paths(cpu_library):
        pytest.skip(f"this machine has no {request.param}")
    return paths(cpu_library).index(request.param)
