"""Compile recorded launches for GPUs that are not here, with the launcher's own settings."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from owl_fast.kernels.launch import OPTIONS, Launch

# Shared memory that a block may use, in bytes (CUDA programming guide, table of compute capabilities).
SHARED_LIMIT = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
TARGETS = tuple(SHARED_LIMIT)


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes. spilled: bytes of local memory a thread keeps registers in."""

    registers: int
    spilled: int
    shared: int
    float_atomics: bool


@dataclass(frozen=True)
class Program:
    """A launch as the compiler of one target sees it: launches of equal keys are one program."""

    source: Any
    options: Any
    target: Any

    @property
    def key(self) -> str:
        return str(self.source.hash())


def program(launch: Launch, capability: int) -> Program:
    """With the types, the constants and what is known of strides and addresses (divisible by 16, 1)."""
    target = GPUTarget("cuda", capability, 32)
    backend = make_backend(target)
    kernel = launch.kernel
    settings = {**launch.settings, **OPTIONS, "debug": False, "instrumentation_mode": ""}
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    options, signature, constants, attributes = kernel._pack_args(
        backend, settings, *bind(*launch.args, **settings)
    )
    return Program(ASTSource(kernel, signature, constants, attributes), options, target)


def compile_program(given: Program) -> Resources:
    """Any error of the compiler goes on to the caller."""
    compiled = triton.compile(given.source, target=given.target, options=given.options.__dict__)
    registers, stack, local = _usage(compiled.asm["cubin"])
    return Resources(
        registers=registers,
        spilled=stack + local,
        shared=compiled.metadata.shared,
        float_atomics=bool(re.search(r"\b(atom|red)\.\S*\.(f|bf)\d", compiled.asm["ptx"])),
    )


def _usage(cubin: bytes) -> tuple[int, int, int]:
    """Registers, stack and local memory, as cuobjdump of Triton's package reads them."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", said)
    assert found is not None, said
    registers, stack, local = map(int, found.groups())
    return registers, stack, local
