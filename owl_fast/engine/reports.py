"""What an engine says of itself: the memory it takes and the work it has done."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch

from owl_fast import ops
from owl_fast.config import OwlConfig
from owl_fast.engine.outputs import FinishReason, Timings, Usage


@dataclass(frozen=True)
class Memory:
    """Bytes on the model's device. pictures: of the rows kept of them, when that cache is full. activations:
    an estimate of what the largest step takes for a while."""

    weights: int
    adapters: int
    cache: int
    pictures: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.adapters + self.cache + self.pictures + self.activations


@dataclass(frozen=True)
class Stats:
    """Work since the engine was made.

    requests    taken in; each is waiting, running, or has been answered, cancelled or failed
    usage       sums over the ended requests
    timings     the same; in Timings.predicted_per_second a row counts for itself, not for its batch
    steps       batches computed, and the seconds spent in them, out of `seconds` in all
    failed_steps    those that raised, and took the answers they were about with them
    silent_seconds  since the work that is there was last seen to go on; 0 when there is none
    blocks      of the cache, and those of them that no request holds
    preemptions how often a running request had to wait again, for memory or for another client's turn
    guesses     positions that were computed on a guess, and those of them that came true
    pictures    rows of so many were asked for, and so many of them were found in the picture cache
    """

    requests: int
    waiting: int
    running: int
    answered: int
    cancelled: int
    failed: int
    usage: Usage
    timings: Timings
    steps: int
    preemptions: int
    guesses: int
    guesses_right: int
    pictures: int
    pictures_cached: int
    busy_seconds: float
    seconds: float
    failed_steps: int
    silent_seconds: float
    blocks: int
    blocks_free: int


@dataclass
class Tally:
    """The counts behind Stats, as the loop keeps them."""

    requests: int = 0
    steps: int = 0
    preemptions: int = 0
    guesses: int = 0
    guesses_right: int = 0
    pictures: int = 0
    pictures_cached: int = 0
    failed_steps: int = 0
    busy_seconds: float = 0.0
    ended: dict[FinishReason, int] = field(
        default_factory=lambda: {"stop": 0, "length": 0, "cancelled": 0, "error": 0}
    )
    usage: Usage = field(default_factory=lambda: Usage(0, 0))
    timings: Timings = field(default_factory=Timings)
    since: float = field(default_factory=time.perf_counter)

    def end(self, reason: FinishReason, usage: Usage, timings: Timings) -> None:
        self.ended[reason] += 1
        self.usage += usage
        self.timings += timings

    def stats(
        self,
        *,
        arrived: int,
        waiting: int,
        running: int,
        blocks: int,
        blocks_free: int,
        silent_seconds: float,
    ) -> Stats:
        """arrived: of those that wait, the ones not taken in yet."""
        return Stats(
            requests=arrived + self.requests,
            waiting=waiting,
            running=running,
            answered=self.ended["stop"] + self.ended["length"],
            cancelled=self.ended["cancelled"],
            failed=self.ended["error"],
            usage=self.usage,
            timings=self.timings,
            steps=self.steps,
            preemptions=self.preemptions,
            guesses=self.guesses,
            guesses_right=self.guesses_right,
            pictures=self.pictures,
            pictures_cached=self.pictures_cached,
            busy_seconds=self.busy_seconds,
            seconds=time.perf_counter() - self.since,
            failed_steps=self.failed_steps,
            silent_seconds=silent_seconds,
            blocks=blocks,
            blocks_free=blocks_free,
        )


def activation_bytes(
    config: OwlConfig,
    dtype: torch.dtype,
    step_tokens: int,
    max_batch: int,
    context: int,
    backend: ops.Backend,
    answers: int,
    exact: bool = False,
) -> int:
    """An estimate of what the largest step holds at its widest point, beside the weights and the cache.

    backend: of the device. For torch each product writes its quantized weight out in dtype before; libowl_cpu
    holds gate | up in float32. answers: rows whose logits are wanted at once. exact: on a GPU.
    """
    llama, vision, width = config.llama, config.vision, dtype.itemsize
    held_as = config.quantization if backend == "torch" else None
    language, tower = (held_as.scheme, held_as.vision) if held_as is not None else (None, None)
    rows = min(step_tokens, max_batch * context)
    kv = llama.num_key_value_heads * llama.head_dim
    # Held all the while: the embedded rows, the layer's input, one normed copy. Then in turn: the residual,
    # gate | up and the factors of SwiGLU; or q | k | v, q and k rotated, the answer and its parts, and the
    # keys and values of one sequence.
    held = 3 * llama.hidden_size
    mlp = rows * (held + llama.hidden_size + 4 * llama.intermediate_size) * width
    if backend == "libowl_cpu":
        gate_up = 2 * llama.intermediate_size * 4
        mlp = rows * ((held + 2 * llama.hidden_size + llama.intermediate_size) * width + gate_up)
    attention = rows * (held + 4 * llama.hidden_size + 3 * kv) + 2 * context * kv
    if exact:  # products of any number of rows are summed in parts, q | k | v in two of float32
        attention += rows * 2 * (llama.hidden_size + 2 * kv) * 4 // width
    patches = vision.num_patches + 1
    picture = patches * (2 * vision.hidden_size + 3 * vision.intermediate_size)
    # As they come, in float32, as log-probs, and whether they are finite.
    logits = answers * llama.vocab_size * (width + 4 + 4 + 1)
    # A product holds its input and what it gives beside the weight.
    gate_up = 2 * llama.intermediate_size * llama.hidden_size + rows * (held + 2 * llama.intermediate_size)
    head = llama.vocab_size * llama.hidden_size + answers * llama.vocab_size
    fc1 = vision.hidden_size * vision.intermediate_size + picture
    written = max(max(gate_up, head) if language else 0, fc1 if tower else 0)
    return max(mlp, max(attention, picture, written) * width, logits)
