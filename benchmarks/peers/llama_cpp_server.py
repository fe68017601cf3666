"""llama-cpp-python's own server on random weights of the same shapes: one request at a time."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.peers.gguf_file import gguf_file
from benchmarks.peers.llama_cpp import FLASH, better_flash
from owl_fast.config import LlamaConfig
from owl_fast.machine import cpu_count

SCHEMES = {"none": "F16", "int8": "Q8_0", "int4": "Q4_0"}  # held against ours
EXTRAS = {"logit_bias": {"2": -100}}  # no answer ends early


def name(quant: str) -> str:
    return f"llama.cpp {SCHEMES[quant]} server"


def command(folder: Path, config: LlamaConfig, quant: str, vocabulary: bytes, context: int) -> list[str]:
    """Its command line, but for the port. folder: where its file is, or is to be written."""
    import llama_cpp.server.app  # noqa: F401  # what is missing of its own requirements is said here

    scheme = SCHEMES[quant]
    flash = FLASH[better_flash(folder, config, scheme)]
    settings = {
        "model": gguf_file(folder, config, scheme, vocabulary),
        "n_ctx": context,
        "n_threads": cpu_count(),  # as many as ours has
        "n_threads_batch": cpu_count(),
        "flash_attn": flash,
        "logits_all": False,  # they would be computed for every position of a prompt
        "interrupt_requests": False,  # a new request would end the one that is being answered
        "verbose": False,
    }
    flags = (part for name, value in settings.items() for part in (f"--{name}", str(value)))
    return [sys.executable, "-m", "llama_cpp.server", *flags]
