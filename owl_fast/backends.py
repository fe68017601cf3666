"""Which backend runs an operation: by its device, the library that is there, and wanted gradients."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch
from torch import Tensor

from owl_fast import native
from owl_fast.kernels.launch import supports

Backend = Literal["triton", "libowl_cpu", "torch"]

_chosen: ContextVar[bool | None] = ContextVar("_chosen", default=None)
_exact: ContextVar[bool] = ContextVar("_exact", default=False)


@contextmanager
def kernels(used: bool) -> Iterator[None]:
    """Inside the block Triton's kernels run on every device (on a CPU interpreted); or, not used, neither
    they nor libowl_cpu's operations on dense values, so that plain torch is there to compare with."""
    token = _chosen.set(used)
    try:
        yield
    finally:
        _chosen.reset(token)


@contextmanager
def exactly(wanted: bool) -> Iterator[None]:
    """Inside the block a row's bits do not depend on how many rows it is computed with, nor on whose: the
    language model's operations have one kernel each, with one size of tiles. libowl_cpu is always so."""
    token = _exact.set(wanted)
    try:
        yield
    finally:
        _exact.reset(token)


def exact() -> bool:
    """Whether this runs inside `exactly(True)`."""
    return _exact.get()


def uses_kernels(x: Tensor) -> bool:
    """Whether operations on x run as Triton's kernels, as far as there are some."""
    return backend(x.device) == "triton"


def native_library(*inputs: Tensor | None) -> ctypes.CDLL | None:
    """libowl_cpu, where no gradient is wanted."""
    return None if _chosen.get() is False or wants_gradient(*inputs) else native.library()


def natively(run: Callable[..., Tensor]) -> Callable[..., Tensor] | None:
    """run(library, ..., pool=...) with libowl_cpu and the shared threads; None without the library."""
    library = native.library()
    return None if library is None else lambda *given: run(library, *given, pool=native.pool())


def backend(device: torch.device) -> Backend:
    """What runs linear layers of inference on this device; torch writes quantized weights out dense."""
    chosen = _chosen.get()
    if supports(device) if chosen is None else chosen:
        return "triton"
    return "torch" if device.type != "cpu" or native.library() is None else "libowl_cpu"


def wants_gradient(*inputs: object) -> bool:
    """Whether a gradient with respect to any of them is wanted."""
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)


def differentiates(*inputs: object) -> bool:
    """Whether a gradient is wanted, and backward passes of our own may give it, not autograd through the
    references."""
    return _chosen.get() is not False and wants_gradient(*inputs)
