"""How fast the processors can read at most: native/read.cpp, compiled for this machine on the spot."""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.harness import ROOT
from owl_fast.machine import cpu_count

SOURCE = ROOT / "benchmarks/native/read.cpp"
NBYTES = 1 << 29  # more than caches hold
LINE = 64
STREAMS = 8  # kStreams of the source


def reader() -> tuple[Callable[[], float], int, str]:
    """Seconds of one measurement, its bytes, and what has to be said of it."""
    memory = _memory()
    try:
        read = _compiled()
    except (OSError, subprocess.CalledProcessError) as error:
        note = f"in one stream, by torch: {SOURCE.name} is not compiled ({error})"
        return functools.partial(_with_torch, memory), memory.nbytes, note
    return functools.partial(_with_streams, memory, read), memory.nbytes, ""


def _compiled() -> Callable[[int, int], int]:
    compiler = os.environ.get("CXX", "c++")
    with tempfile.TemporaryDirectory(prefix="owl-read-") as folder:
        library = Path(folder) / "read.so"
        command = [compiler, "-O3", "-march=native", "-shared", "-fPIC", str(SOURCE), "-o", str(library)]
        subprocess.run(command, check=True, capture_output=True)
        read = ctypes.CDLL(str(library)).read_lines
    read.argtypes, read.restype = (ctypes.c_void_p, ctypes.c_size_t), ctypes.c_uint64
    return read


def _with_streams(memory: Tensor, read: Callable[[int, int], int]) -> float:
    threads = cpu_count()
    lines = memory.nbytes // (threads * STREAMS * LINE)  # of each stream; a few at the end are left
    starts = [memory.data_ptr() + thread * STREAMS * lines * LINE for thread in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, starts, [0] * threads))  # starts the threads
        begin = time.perf_counter()
        list(pool.map(read, starts, [lines] * threads))
        return time.perf_counter() - begin


def _with_torch(memory: Tensor) -> float:
    begin = time.perf_counter()
    memory.view(torch.int32).amax()
    return time.perf_counter() - begin


def _memory() -> Tensor:
    """Numbers of its own in every page: untouched pages would all be the same one."""
    memory = torch.empty((NBYTES + LINE) // 8, dtype=torch.int64).random_().view(torch.uint8)
    first = -memory.data_ptr() % LINE
    return memory[first : first + NBYTES]
