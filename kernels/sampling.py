"""The next token of a row of scores, the same on every device: an exact draw from whole-number weights.

    x_i = scale (s_i - max s) rounded to 2^-16,  scale = log2(e) / temperature            (float32)
    w_i = floor(2^30 * 2^x_i)
    top-k        tokens that score less than the k-th get weight 0; what scores as much stays
    top-p        likeliest first (equal weights: smaller id first), while the sum before is < p * sum of all
    min-p        w_i >= min_p * 2^30
    draw         r = floor(bits / 2^64 * sum of what is left); the token at which the running sum passes r

Once there are weights, everything is whole numbers: no order of summation and no way of sorting can change
the outcome. Devices round 2^x differently, by 2^-22 of a weight at most: too little to change the order of
weights that the rounding of x keeps apart, so only a draw that falls within as much of a boundary can differ
(for the same scores, about one in 100 000 if all words are about equally likely). What the whole numbers
cost: a probability is off by 6 millionths of itself, and what is less than 2^-30 times as likely as the
likeliest token is never drawn. Temperature 0 takes the likeliest; of equals the smallest id.

bits: Philox-4x32-10 (Salmon et al., SC 2011), key = seed, counter = number of tokens generated so far; its
first two words, the first one low.

Presence and frequency penalty are whole 2^-30 as well, whatever a device would make of count * frequency:

    s_i -= float32(count_i * frequency + (count_i > 0) * presence)

V vocabulary, S slots (a running request has one), C longest history.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

ONE = 1 << 30  # the likeliest token's weight, and what stands for a penalty of 1
FINE = 1 << 16  # steps of x between two powers of two
MAX_BIASES = 300  # of a request
_LARGEST, _SMALLEST = 3e38, 2e-38  # of a scale: neither infinity nor 0, which says greedy
_LARGEST_COUNT = (1 << 31) - 1
_WORD = 0xFFFFFFFF


class SamplingSettings(NamedTuple):
    """What one request asks for, in the numbers that every device computes with."""

    scale: float  # log2(e) / temperature, to be rounded to float32; 0 takes the likeliest
    repetition_penalty: float
    top_k: int  # 0 keeps all
    top_p: int  # 2^64 p; 0 keeps all
    least_weight: int  # of min-p
    no_repeat_ngram: int  # 0 switches it off
    min_tokens: int
    seed: int
    presence: int  # 2^30 times the penalty
    frequency: int
    logit_bias: tuple[tuple[int, float], ...]  # tokens, no two the same, and what is added


def sampling_settings(
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    no_repeat_ngram: int,
    min_tokens: int,
    seed: int,
    presence_penalty: float,
    frequency_penalty: float,
    logit_bias: tuple[tuple[int, float], ...],
) -> SamplingSettings:
    scale = min(max(math.log2(math.e) / temperature, _SMALLEST), _LARGEST) if temperature > 0 else 0.0
    share = max(int(math.ldexp(top_p, 64)), 1) if top_p < 1 else 0
    counts = (min(count, _LARGEST_COUNT) for count in (top_k, no_repeat_ngram, min_tokens))
    top_k, no_repeat_ngram, min_tokens = counts
    least = math.ceil(min_p * ONE)
    return SamplingSettings(
        scale=scale,
        repetition_penalty=repetition_penalty,
        top_k=top_k,
        top_p=share,
        least_weight=least,
        no_repeat_ngram=no_repeat_ngram,
        min_tokens=min_tokens,
        seed=seed,
        presence=round(presence_penalty * ONE),
        frequency=round(frequency_penalty * ONE),
        logit_bias=logit_bias,
    )


def charges(counts: Iterable[int], settings: SamplingSettings) -> Tensor:
    """What presence and frequency penalty take off the scores of tokens generated so often: (n,) fp32."""
    whole = [count * settings.frequency + (count > 0) * settings.presence for count in counts]
    return torch.tensor(whole, dtype=torch.int64).float() / ONE


def random_bits(seed: int, position: int) -> int:
    """64 random bits, a function of the seed (64 bits) and the position (32 bits) alone."""
    low, high, _, _ = philox((position, 0, 0, 0), (seed & _WORD, seed >> 32 & _WORD))
    return high << 32 | low


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox-4x32-10: four random words for a counter of four and a key of two."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        even, odd = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = odd >> 32 ^ c1 ^ k0, odd & _WORD, even >> 32 ^ c3 ^ k1, even & _WORD
        k0, k1 = k0 + 0x9E3779B9 & _WORD, k1 + 0xBB67AE85 & _WORD
    return c0, c1, c2, c3


def kept_weights(scores: Tensor, settings: SamplingSettings) -> tuple[Tensor, Tensor]:
    """One row (V,), not all of it -inf -> (weights (V,) int64, ids), likeliest first; 0: not kept."""
    scores = scores.float()
    if 0 < settings.top_k < len(scores):
        scores = scores.masked_fill(scores < scores.topk(settings.top_k).values[-1], -math.inf)
    exponent = (scores - scores.max()) * torch.tensor(settings.scale, dtype=torch.float32)
    exponent = torch.floor(exponent * FINE + 0.5) / FINE
    weights, ids = (exponent.double().exp2() * ONE).long().sort(descending=True, stable=True)
    if settings.top_p:
        limit = max(int(weights.sum()) * settings.top_p >> 64, 1)
        weights = weights.masked_fill(weights.cumsum(0) - weights >= limit, 0)
    return weights.masked_fill(weights < settings.least_weight, 0), ids


def draw_reference(scores: Tensor, settings: SamplingSettings, position: int) -> int:
    """The token at this position; for settings with a temperature and a row as kept_weights takes it."""
    weights, ids = kept_weights(scores, settings)
    running = weights.cumsum(0)
    drawn = random_bits(settings.seed, position) * int(running[-1]) >> 64
    return int(ids[int(torch.searchsorted(running, drawn, right=True))])


class SamplingState(NamedTuple):
    """What sampling on a device knows of each slot: fixed buffers, which a captured graph can use."""

    floats: Tensor  # (S, 2) fp32: scale, repetition_penalty
    integers: Tensor  # (S, 9) int64: the other settings in their order, the number of biases last
    history: Tensor  # (S, C) int32: the begin token and what was generated
    lengths: Tensor  # (S,) int32: of the histories
    biased: Tensor  # (S, MAX_BIASES) int32: tokens with a bias
    biases: Tensor  # (S, MAX_BIASES) fp32: theirs

    def occupy(self, slot: int, settings: SamplingSettings, history: Sequence[int]) -> None:
        """A request takes this slot; history: the begin token and what it has generated already."""
        scale, penalty, *integers, logit_bias = settings
        integers.append(len(logit_bias))
        signed = [value - (1 << 64) if value >= 1 << 63 else value for value in integers]
        self.floats[slot] = torch.tensor([scale, penalty])
        self.integers[slot] = torch.tensor(signed)
        self.history[slot, : len(history)] = torch.tensor(history, dtype=torch.int32)
        self.lengths[slot] = len(history)
        for index, buffer in enumerate((self.biased, self.biases)):
            values = [pair[index] for pair in logit_bias]
            buffer[slot, : len(values)] = torch.tensor(values, dtype=buffer.dtype)


def sampling_state(slots: int, longest: int, device: torch.device) -> SamplingState:
    """Empty slots. longest: tokens of a history, the begin token included; what comes behind is not kept."""
    shapes = (
        ((slots, 2), torch.float32),
        ((slots, 9), torch.int64),
        ((slots, longest), torch.int32),
        ((slots,), torch.int32),
        ((slots, MAX_BIASES), torch.int32),
        ((slots, MAX_BIASES), torch.float32),
    )
    return SamplingState(*(torch.zeros(shape, dtype=dtype, device=device) for shape, dtype in shapes))
