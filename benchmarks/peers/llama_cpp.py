"""llama.cpp, through the low-level functions of llama-cpp-python, on random weights of the same shapes."""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Row
from benchmarks.peers.gguf_file import gguf_file
from benchmarks.steps import Steps
from benchmarks.timing import Run
from owl_fast.config import LlamaConfig
from owl_fast.machine import cpu_count

SCHEMES = {"int4": ("Q4_0", "Q4_K"), "int8": ("Q8_0",)}  # held against ours
FLASH = {"off": False, "on": True}
TOKEN, WARM = 5, 8
THE_BETTER = "the better of its two settings"


def name(scheme: str, flash: str) -> str:
    return f"llama.cpp {scheme}, flash attention {flash}"


def with_the_better(rows: Sequence[Row]) -> list[Row]:
    """The same rows, of each scheme the faster of the two marked."""
    best: dict[tuple[str, str, str], Row] = {}
    for r in rows:
        if r.contender.startswith("llama.cpp") and r.median is not None:
            scheme = r.contender.partition(",")[0]
            held = best.setdefault((r.shape, r.metric, scheme), r)
            faster = (r.median > (held.median or 0)) == r.unit.endswith("/s")
            best[r.shape, r.metric, scheme] = r if faster else held
    return [replace(r, note=THE_BETTER) if any(r is b for b in best.values()) else r for r in rows]


class Session:
    """A model with a cache of its own for one sequence, on as many threads as ours has."""

    def __init__(self, path: Path, positions: int, flash: bool) -> None:
        import llama_cpp

        self._api, self._model = llama_cpp, _model(path)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = positions
        params.n_threads = params.n_threads_batch = cpu_count()
        wanted = "ENABLED" if flash else "DISABLED"
        params.flash_attn_type = getattr(llama_cpp, f"LLAMA_FLASH_ATTN_TYPE_{wanted}")
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise OSError(f"llama.cpp makes no context of {positions} positions")
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))

    def feed(self, tokens: Sequence[int]) -> int:
        """The likeliest token after these, which follow what was fed before."""
        ids = (self._api.llama_token * len(tokens))(*tokens)
        code = self._api.llama_decode(self._context, self._api.llama_batch_get_one(ids, len(tokens)))
        if code:
            raise RuntimeError(f"llama_decode returns {code}")
        logits = self._api.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())

    def clear(self) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), False)

    def close(self) -> None:
        self._api.llama_free(self._context)


@contextmanager
def session(folder: Path, config: LlamaConfig, scheme: str, positions: int, flash: str) -> Iterator[Session]:
    """folder: where its file is, or is to be written."""
    opened = Session(gguf_file(folder, config, scheme), positions, FLASH[flash])
    try:
        yield opened
    finally:
        opened.close()


def decode(folder: Path, config: LlamaConfig, scheme: str, flash: str, context: int, steps: int) -> Steps:
    """Seconds of each greedy step behind a prompt of `context` tokens, after some to warm up."""
    with session(folder, config, scheme, context + WARM + steps, flash) as running:
        token = running.feed([TOKEN] * context)
        for step in range(WARM + steps):
            start = time.perf_counter()
            token = running.feed([token])
            if step >= WARM:
                yield time.perf_counter() - start


def first_token(running: Session, tokens: int) -> Run:
    """The first token after a prompt of so many."""

    def run() -> int:
        running.clear()
        return running.feed([TOKEN] * tokens)

    return run


@functools.cache
def _model(path: Path) -> Any:
    """Loaded once a process, weights rearranged for this processor where llama.cpp does so by default."""
    import llama_cpp

    llama_cpp.llama_log_set(_silence(), ctypes.c_void_p())
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(bytes(path), llama_cpp.llama_model_default_params())
    if not model:
        raise OSError(f"llama.cpp does not load {path}")
    return model


@functools.cache
def _silence() -> Any:
    """Kept for as long as the process: llama.cpp calls it."""
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda level, text, data: None)
