"""Compile recorded launches for GPUs that are not here, with the launcher's own settings."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

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

    kernel: str
    capability: int
    warps: int
    registers: int
    spilled: int
    shared: int
    float_atomics: bool


def compile_launch(launch: Launch, capability: int) -> Resources:
    """Any error of the compiler goes on to the caller."""
    target = GPUTarget("cuda", capability, 32)
    backend = make_backend(target)
    kernel, settings = (
        launch.kernel,
        {**launch.settings, **OPTIONS, "debug": False, "instrumentation_mode": ""},
    )
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    options, signature, constants, attributes = kernel._pack_args(
        backend, settings, *bind(*launch.args, **settings)
    )
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=target, options=options.__dict__)
    registers, stack, local = _usage(compiled.asm["cubin"])
    return Resources(
        kernel=launch.name,
        capability=capability,
        warps=compiled.metadata.num_warps,
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
