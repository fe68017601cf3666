"""Triton as far as it is installed, and the one door through which its kernels are launched.

A kernel's settings (tile sizes, warps, stages) come from a plain function of shapes, dtype and compute
capability beside it: nothing is tuned at run time, so first use does not stall and results do not change
between runs. Launches can be recorded, and then need no GPU: on "meta" tensors only the settings are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU-only installs need none of it
    triton = tl = None

__all__ = [
    "GPU_DTYPES",
    "OPTIONS",
    "Launch",
    "Recorder",
    "capability",
    "check",
    "jit",
    "launch",
    "power_of_two",
    "recording",
    "supports",
    "tl",
]

GPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of what kernels compute with
OLDEST = 80  # compute capability
# Of every kernel: versions of Triton differ in what they assume when it is left out.
OPTIONS = {"enable_fp_fusion": True}
INTERPRETED = 90  # the compute capability whose settings the interpreter runs with


@dataclass(frozen=True)
class Launch:
    """One launch: args are the kernel's run-time arguments in order, settings its constants by name."""

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)


@dataclass
class Recorder:
    """Launches in order. capability: of the GPU whose settings "meta" tensors get."""

    capability: int
    launches: list[Launch] = field(default_factory=list)


_recorder: Recorder | None = None


def jit(function: Callable[..., Any]) -> Any:
    """triton.jit where there is Triton; without it the function as it is, which nobody calls."""
    return function if triton is None else triton.jit(function)


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **settings: Any) -> None:
    """Run kernel(*args, **settings) on a grid of programs; an empty grid is no launch."""
    if 0 in grid:
        return
    if _recorder is not None:
        _recorder.launches.append(Launch(kernel, grid, args, settings))
    if not any(isinstance(arg, Tensor) and arg.is_meta for arg in args):
        kernel[grid](*args, **settings, **OPTIONS)


@contextmanager
def recording(capability: int = INTERPRETED) -> Iterator[Recorder]:
    """Every launch inside the block, also those that run; launches on "meta" tensors do not run."""
    global _recorder
    before, _recorder = _recorder, Recorder(capability)
    try:
        yield _recorder
    finally:
        _recorder = before


def supports(device: torch.device) -> bool:
    """Whether kernels are launched there: Triton is installed, and it is CUDA from compute capability 8.0, or
    "meta" while launches are recorded."""
    if triton is None:
        return False
    recorded = device.type == "meta" and _recorder is not None
    return recorded or (device.type == "cuda" and capability(device) >= OLDEST)


def capability(device: torch.device) -> int:
    """90 for compute capability 9.0."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return 10 * major + minor
    return _recorder.capability if _recorder is not None else INTERPRETED


def power_of_two(n: int) -> int:
    """The smallest that is no less than n, 1 at least: tl.arange takes no other lengths."""
    return 1 << max(n - 1, 0).bit_length()


def check(fits: bool, came: object, wanted: str) -> None:
    """ValueError saying what came and what was wanted, before anything is launched."""
    if not fits:
        if isinstance(came, Tensor):
            kind = str(came.dtype).removeprefix("torch.")
            came = f"{kind} {tuple(came.shape)} with strides {came.stride()} on {came.device}"
        raise ValueError(f"{came} came; wanted {wanted}")
