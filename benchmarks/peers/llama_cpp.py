"""llama.cpp, through the low-level functions of llama-cpp-python, on random weights of the same shapes."""

from __future__ import annotations

import ctypes
import functools
import statistics
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
from benchmarks.timing import Run, alternate
from owl_fast.config import LlamaConfig
from owl_fast.machine import cpu_count

SCHEMES = {"int4": ("Q4_0", "Q4_K"), "int8": ("Q8_0",)}  # held against ours
FLASH = {"off": False, "on": True}
TOKEN, WARM = 5, 8
BETTER = "the better of its two settings"
TRIAL_TOKENS, TRIAL_STEPS = 64, 8


def noted(rows: Sequence[Row], folder: Path, config: LlamaConfig) -> list[Row]:
    """The same rows, of each scheme the faster of the two marked, and how it holds its weights."""
    best: dict[tuple[str, str, str], Row] = {}
    for r in rows:
        if r.contender.startswith("llama.cpp") and r.median is not None:
            key = r.shape, r.metric, scheme_of(r)
            held = best.setdefault(key, r)
            faster = (r.median > (held.median or 0)) == r.unit.endswith("/s")
            best[key] = r if faster else held
    notes = {id(r): f"{BETTER}; {weights(folder, config, scheme_of(r))}" for r in best.values()}
    return [replace(r, note=notes.get(id(r), r.note)) for r in rows]


def scheme_of(row: Row) -> str:
    return row.contender.removeprefix("llama.cpp ").partition(",")[0]


def weights(folder: Path, config: LlamaConfig, scheme: str) -> str:
    """How they are held, in words."""
    if rearranges(folder, config, scheme):
        return "weights rearranged, the default"
    return "weights as in the file, faster here than rearranged"


def name(scheme: str, flash: str) -> str:
    return f"llama.cpp {scheme}, flash attention {flash}"


class Session:
    """A model with a cache of its own for one sequence."""

    def __init__(self, model: Any, positions: int, flash: bool, threads: int) -> None:
        import llama_cpp

        self._api = llama_cpp
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = positions
        params.n_threads = params.n_threads_batch = threads
        wanted = "ENABLED" if flash else "DISABLED"
        params.flash_attn_type = getattr(llama_cpp, f"LLAMA_FLASH_ATTN_TYPE_{wanted}")
        self._context = llama_cpp.llama_init_from_model(model, params)
        if not self._context:
            raise OSError(f"llama.cpp makes no context of {positions} positions")
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

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
    model = _model(gguf_file(folder, config, scheme), rearranges(folder, config, scheme))
    opened = Session(model, positions, FLASH[flash], cpu_count())  # as many threads as ours has
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
def rearranges(folder: Path, config: LlamaConfig, scheme: str) -> bool:
    """Whether this machine is faster with weights rearranged, as llama.cpp has them unless told otherwise.

    What one layer takes of one thread's time for a short prompt and some steps, whatever else is running.
    """
    import llama_cpp

    path = gguf_file(folder, replace(config, num_hidden_layers=1), scheme)
    models = {rearranged: _load(path, rearranged) for rearranged in (True, False)}
    positions = TRIAL_TOKENS + TRIAL_STEPS
    sessions = {key: Session(model, positions, False, threads=1) for key, model in models.items()}
    timers = {str(key): functools.partial(_trial, opened) for key, opened in sessions.items()}
    for timer in timers.values():
        timer()
    seconds = alternate(timers, 0.0)
    for key, model in models.items():
        sessions[key].close()
        llama_cpp.llama_model_free(model)
    return statistics.median(seconds["True"]) < statistics.median(seconds["False"])


def _trial(running: Session) -> float:
    start = time.thread_time()
    running.clear()
    token = running.feed([TOKEN] * TRIAL_TOKENS)
    for _ in range(TRIAL_STEPS):
        token = running.feed([token])
    return time.thread_time() - start


@functools.cache
def _model(path: Path, rearranged: bool) -> Any:
    """Loaded once a process."""
    return _load(path, rearranged)


def _load(path: Path, rearranged: bool) -> Any:
    import llama_cpp

    llama_cpp.llama_log_set(_silence(), ctypes.c_void_p())
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers, params.use_extra_bufts = 0, rearranged
    model = llama_cpp.llama_model_load_from_file(bytes(path), params)
    if not model:
        raise OSError(f"llama.cpp does not load {path}")
    return model


@functools.cache
def _silence() -> Any:
    """Kept for as long as the process: llama.cpp calls it."""
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda level, text, data: None)
