"""llama.cpp, through the low-level functions of llama-cpp-python, on random weights of the same shapes."""

from __future__ import annotations

import ctypes
import functools
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
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
CRASHES = "its AMX functions end the process; build it without them, as docs/benchmarks.md says"
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
    """A model with a cache of its own for one sequence, or for several of so many positions each."""

    def __init__(self, model: Any, positions: int, flash: bool, threads: int, sequences: int = 1) -> None:
        import llama_cpp

        self._api = llama_cpp
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = positions * sequences, sequences
        params.n_threads = params.n_threads_batch = threads
        wanted = "ENABLED" if flash else "DISABLED"
        params.flash_attn_type = getattr(llama_cpp, f"LLAMA_FLASH_ATTN_TYPE_{wanted}")
        self._context = llama_cpp.llama_init_from_model(model, params)
        if not self._context:
            raise OSError(f"llama.cpp makes no context of {positions * sequences} positions")
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def feed(self, tokens: Sequence[int]) -> int:
        """The likeliest token after these, which follow what was fed before."""
        ids = (self._api.llama_token * len(tokens))(*tokens)
        self._decode(self._api.llama_batch_get_one(ids, len(tokens)))
        return self._likeliest(-1)

    def clear(self) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), False)

    def close(self) -> None:
        self._api.llama_free(self._context)

    def _decode(self, batch: Any) -> None:
        code = self._api.llama_decode(self._context, batch)
        if code:
            raise RuntimeError(f"llama_decode returns {code}")

    def _likeliest(self, place: int) -> int:
        """The token after that at a place of the last batch."""
        logits = self._api.llama_get_logits_ith(self._context, place)
        return int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())


@contextmanager
def session(folder: Path, config: LlamaConfig, scheme: str, positions: int, flash: str) -> Iterator[Session]:
    """folder: where its file is, or is to be written."""
    model = loaded(folder, config, scheme)
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
    """Whether this machine is faster with weights rearranged, as llama.cpp has them unless told otherwise."""
    return _fastest(folder, config, scheme, {"yes": (True, False), "no": (False, False)}) == "yes"


@functools.cache
def better_flash(folder: Path, config: LlamaConfig, scheme: str) -> str:
    """With which setting of its attention this machine is faster for one sequence."""
    rearranged = rearranges(folder, config, scheme)
    return _fastest(folder, config, scheme, {flash: (rearranged, on) for flash, on in FLASH.items()})


def _fastest(
    folder: Path, config: LlamaConfig, scheme: str, settings: Mapping[str, tuple[bool, bool]]
) -> str:
    """By what one layer takes of one thread's time for a short prompt and some steps, whatever else is
    running. settings: of each name whether weights are rearranged, and flash attention."""
    import llama_cpp

    path = gguf_file(folder, replace(config, num_hidden_layers=1), scheme)
    models = {name: _load(path, rearranged) for name, (rearranged, _) in settings.items()}
    positions = TRIAL_TOKENS + TRIAL_STEPS
    sessions = {name: Session(models[name], positions, on, threads=1) for name, (_, on) in settings.items()}
    timers = {name: functools.partial(_trial, opened) for name, opened in sessions.items()}
    for timer in timers.values():
        timer()
    seconds = alternate(timers, 0.0)
    for name, model in models.items():
        sessions[name].close()
        llama_cpp.llama_model_free(model)
    return min(settings, key=lambda name: statistics.median(seconds[name]))


def _trial(running: Session) -> float:
    start = time.thread_time()
    running.clear()
    token = running.feed([TOKEN] * TRIAL_TOKENS)
    for _ in range(TRIAL_STEPS):
        token = running.feed([token])
    return time.thread_time() - start


def loaded(folder: Path, config: LlamaConfig, scheme: str) -> Any:
    """The model of the file in the folder, held as is faster here."""
    return _model(gguf_file(folder, config, scheme), rearranges(folder, config, scheme))


@functools.cache
def _model(path: Path, rearranged: bool) -> Any:
    """Loaded once a process."""
    return _load(path, rearranged)


def _load(path: Path, rearranged: bool) -> Any:
    import llama_cpp

    llama_cpp.llama_log_set(_silence(), ctypes.c_void_p())
    llama_cpp.llama_backend_init()
    if rearranged and b"AMX_INT8 = 1" in llama_cpp.llama_print_system_info():
        raise RuntimeError(f"llama.cpp {llama_cpp.__version__}: {CRASHES}")
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
