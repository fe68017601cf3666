"""llama.cpp answering several prompts at once: one context, a sequence for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.peers.llama_cpp import FLASH, Session, better_flash, loaded, weights
from owl_fast.config import LlamaConfig
from owl_fast.machine import cpu_count


class Batch(Session):
    """Sequences of so many positions, which go on together."""

    def __init__(self, model: Any, positions: int, flash: bool, threads: int, sequences: int) -> None:
        super().__init__(model, positions, flash, threads, sequences)
        self._most = self._api.llama_n_batch(self._context)
        self._batch = self._api.llama_batch_init(self._most, 0, 1)
        self._lengths = [0] * sequences

    def feed_all(self, rows: Sequence[Sequence[int]]) -> list[int]:
        """The likeliest token of each sequence after these, which follow what it was fed before."""
        fed = [
            (token, self._lengths[i] + place, i, place + 1 == len(row))
            for i, row in enumerate(rows)
            for place, token in enumerate(row)
        ]
        found: list[int] = []
        for start in range(0, len(fed), self._most):
            part, batch = fed[start : start + self._most], self._batch
            batch.n_tokens = len(part)
            for place, (token, position, sequence, last) in enumerate(part):
                batch.token[place], batch.pos[place] = token, position
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, sequence
                batch.logits[place] = last
            self._decode(batch)
            found += [self._likeliest(place) for place, (*_, last) in enumerate(part) if last]
        self._lengths = [length + len(row) for length, row in zip(self._lengths, rows, strict=True)]
        return found

    def answer(self, prompts: Sequence[Sequence[int]], tokens: int) -> Iterator[list[int]]:
        """So many times the greedy next token of each prompt."""
        self.clear()
        self._lengths = [0] * len(prompts)
        given = self.feed_all(prompts)
        yield given
        for _ in range(tokens - 1):
            given = self.feed_all([[token] for token in given])
            yield given

    def close(self) -> None:
        self._api.llama_batch_free(self._batch)
        super().close()


@contextmanager
def opened(folder: Path, config: LlamaConfig, scheme: str, positions: int, sequences: int) -> Iterator[Batch]:
    """folder: where its file is, or is to be written. Its attention as is faster for one sequence."""
    flash = FLASH[better_flash(folder, config, scheme)]
    batch = Batch(loaded(folder, config, scheme), positions, flash, cpu_count(), sequences)
    try:
        yield batch
    finally:
        batch.close()


@contextmanager
def answers(
    folder: Path, config: LlamaConfig, scheme: str, positions: int, sequences: int
) -> Iterator[Callable[[Sequence[Sequence[int]], int], tuple[float, float]]]:
    """For so many tokens after each prompt: seconds to the first ones, and of the others."""
    with opened(folder, config, scheme, positions, sequences) as batch:

        def seconds(prompts: Sequence[Sequence[int]], tokens: int) -> tuple[float, float]:
            start = time.perf_counter()
            moments = [time.perf_counter() for _ in batch.answer(prompts, tokens)]
            return moments[0] - start, moments[-1] - moments[0]

        yield seconds


def name(scheme: str) -> str:
    return f"llama.cpp {scheme}"


def note(folder: Path, config: LlamaConfig, scheme: str) -> str:
    flash = better_flash(folder, config, scheme)
    return f"flash attention {flash}, the better one for one sequence; {weights(folder, config, scheme)}"
