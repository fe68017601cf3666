"""Sampling: the generator, whole-number weights, and the kernel against the engine's path on the CPU."""

from __future__ import annotations

import math
import random as random_module
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from owl_fast.engine.sampling import SamplingParams, choose, device_settings, process_scores
from owl_fast.kernels.launch import jit, launch, tl
from owl_fast.kernels.sampling import ONE, SamplingState, kept_weights, philox, random_bits, sampling_state
from owl_fast.kernels.sampling_kernel import NONE_ALLOWED, NOT_FINITE, _random_bits, sample_triton
from tests.kernels.tensors import DTYPES, random, strided

BOS, EOS = 1, 2
VOCABULARY = 101
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 1.0},
    "hot": {"temperature": 40.0},
    "cold": {"temperature": 0.01},
    "top-k": {"temperature": 0.8, "top_k": 5},
    "top-k of all": {"temperature": 0.8, "top_k": 5000},
    "top-p": {"temperature": 1.3, "top_p": 0.7},
    "top-p of one": {"temperature": 1.3, "top_p": 1e-300},
    "min-p": {"temperature": 1.3, "min_p": 0.2},
    "all three": {"temperature": 2.0, "top_k": 40, "top_p": 0.9, "min_p": 0.05},
    "penalty": {"temperature": 0.7, "repetition_penalty": 1.7, "no_repeat_ngram": 2},
    "greedy, penalty": {"repetition_penalty": 3.0, "no_repeat_ngram": 3, "min_tokens": 900},
    "presence, frequency": {"temperature": 0.7, "presence_penalty": 0.3, "frequency_penalty": 1.1},
    "likes to repeat": {"temperature": 1.0, "presence_penalty": -0.7, "frequency_penalty": -1 / 3},
    "bias": {"temperature": 1.0, "logit_bias": {0: 1.5, 3: -100, 100: 2 / 3, 57: 100}},
    "biases of all": {"logit_bias": {token: token / 7 for token in range(VOCABULARY)}},
    "all of them": {
        "temperature": 1.1,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "logit_bias": {EOS: 3, 1: -0.4, 50: 1e-3},
        "no_repeat_ngram": 2,
        "min_tokens": 3,
        "top_k": 60,
        "top_p": 0.95,
        "min_p": 0.01,
    },
    "greedy, all of them": {
        "repetition_penalty": 0.7,
        "presence_penalty": 2,
        "frequency_penalty": -1.9,
        "logit_bias": {0: -1.1, 1: 0.6, EOS: 100},
        "no_repeat_ngram": 3,
        "min_tokens": 6,
    },
    "beyond 64 bits": {
        "temperature": 1e-320,
        "top_k": 1 << 70,
        "no_repeat_ngram": 1 << 70,
        "min_tokens": 1 << 70,
    },
}


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_known_answers(counter: str, key: str, words: str) -> None:
    """Those of its authors' library Random123 (kat_vectors)."""
    c0, c1, c2, c3 = (int(word, 16) for word in counter.split())
    k0, k1 = (int(word, 16) for word in key.split())
    assert " ".join(f"{word:08x}" for word in philox((c0, c1, c2, c3), (k0, k1))) == words


@jit
def _bits_kernel(seeds, positions, out):
    at = tl.program_id(0)
    tl.store(out + at, _random_bits(tl.load(seeds + at), tl.load(positions + at)).to(tl.int64))


def test_random_bits_are_the_same_in_kernels(device: torch.device) -> None:
    seeds = torch.tensor([0, 1, -1, 7, -(1 << 63), (1 << 63) - 1, 0x123456789ABCDEF], device=device)
    positions = torch.tensor([0, 1, 2, 2047, 5, 6, 1 << 30], dtype=torch.int32, device=device)
    out = torch.empty_like(seeds)
    launch(_bits_kernel, (len(seeds),), seeds, positions, out)
    wanted = [random_bits(s, p) for s, p in zip(seeds.tolist(), positions.tolist(), strict=True)]
    assert [value % (1 << 64) for value in out.tolist()] == wanted


def test_weights_are_the_probabilities() -> None:
    scores = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 3
    weights, ids = kept_weights(scores, device_settings(SamplingParams(temperature=1.7), 0))
    exact = torch.softmax(scores.double() / 1.7, 0)[ids]
    assert weights[0] == ONE
    off = (weights / weights.sum() - exact).abs()
    assert (off <= 1.1e-5 * exact + 2.0**-30).all()  # 2^x for x off by 2^-17, of the token and of the sum


def start(
    params: list[SamplingParams], seeds: list[int], histories: list[list[int]], device: torch.device
) -> SamplingState:
    state = sampling_state(len(params), 16, device)
    for slot, (one, seed, history) in enumerate(zip(params, seeds, histories, strict=True)):
        state.occupy(slot, device_settings(one, seed), history)
    return state


def by_hand(logits: Tensor, params: SamplingParams, seed: int, history: list[int]) -> int | None:
    scores = process_scores(logits.cpu().float(), history, params, EOS)
    return choose(scores, params, seed, len(history) - 1)


def rows_of(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A third of the rows full of ties, a third of them peaked."""
    logits = random(count, VOCABULARY, device=device, scale=2.0)
    logits[1::3] = logits[1::3].round()
    logits[2::3] *= 8
    return strided(logits.to(dtype))


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "fp32") for name in SETTINGS), ("all of them", "bf16"), ("penalty", "fp16")]
)
@pytest.mark.filterwarnings("ignore:overflow")  # numpy's, in the interpreter: infinite distances, as it shall
@pytest.mark.usefixtures("poisoned")
def test_kernel_chooses_what_the_engine_chooses(device: torch.device, name: str, dtype: str) -> None:
    rows = 6
    logits = rows_of(rows, DTYPES[dtype], device)
    params = [SamplingParams(**SETTINGS[name])] * rows
    seeds = [(row * 0x9E3779B97F4A7C15 & (1 << 64) - 1) - (1 << 63) for row in range(rows)]
    generator = torch.Generator().manual_seed(1)
    histories = [
        [BOS, *torch.randint(4, (row % 7 * 2,), generator=generator).tolist()] for row in range(rows)
    ]
    state = start(params, seeds, histories, device)
    tokens, logprobs, faults = sample_triton(logits, torch.arange(rows, device=device), state, EOS)
    wanted = [by_hand(*given) for given in zip(logits, params, seeds, histories, strict=True)]
    assert tokens.tolist() == wanted
    assert faults.tolist() == [0] * rows
    exact = logits.double().log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    assert (logprobs - exact).abs().max() < 1e-5
    for row, history in enumerate(histories):
        assert state.lengths[row] == len(history) + 1
        assert state.history[row, : len(history) + 1].tolist() == [*history, wanted[row]]


def random_params(generator: random_module.Random) -> SamplingParams:
    """Each option in about every second."""
    ranges: dict[str, Any] = {
        "temperature": generator.uniform(0.3, 3),
        "top_k": generator.randrange(1, VOCABULARY),
        "top_p": generator.uniform(0.2, 1),
        "min_p": generator.uniform(0, 0.3),
        "repetition_penalty": generator.uniform(0.5, 2),
        "presence_penalty": generator.uniform(-2, 2),
        "frequency_penalty": generator.uniform(-2, 2),
        "logit_bias": {generator.randrange(VOCABULARY): generator.uniform(-9, 9) for _ in range(9)},
        "no_repeat_ngram": generator.randrange(1, 4),
        "min_tokens": generator.randrange(9),
    }
    return SamplingParams(**{name: value for name, value in ranges.items() if generator.random() < 0.5})


@pytest.mark.usefixtures("poisoned")
@pytest.mark.filterwarnings("ignore:overflow")
def test_kernel_and_engine_agree_on_any_options(device: torch.device) -> None:
    rows, generator = 16, random_module.Random(3)
    logits = rows_of(rows, torch.float32, device)
    params = [random_params(generator) for _ in range(rows)]
    seeds = [generator.randrange(1 << 62) for _ in range(rows)]
    histories = [
        [BOS, *(generator.randrange(6) for _ in range(generator.randrange(14)))] for _ in range(rows)
    ]
    state = start(params, seeds, histories, device)
    tokens, _, faults = sample_triton(logits, torch.arange(rows, device=device), state, EOS)
    assert faults.tolist() == [0] * rows
    assert tokens.tolist() == [
        by_hand(*given) for given in zip(logits, params, seeds, histories, strict=True)
    ]


def test_counts_of_a_long_history(device: torch.device) -> None:
    """Longer than what the kernel looks at together; a slot's biases are those of its last request."""
    history = [BOS, *(token % 7 + 3 for token in range(1300))]
    state = sampling_state(1, 1400, device)
    params = SamplingParams(logit_bias=dict.fromkeys(range(VOCABULARY), 9.0))
    state.occupy(0, device_settings(params, 0), [BOS])
    logits = torch.zeros(1, VOCABULARY, device=device)
    logits[0, 3:10] = torch.tensor([500.0, 499, 498, 497, 496, 495, 494]) / 4
    for penalty, bias in ((0.1, {5: 100.0}), (0.7, {}), (0.7, {60: -0.5, 61: 0.5})):
        params = SamplingParams(frequency_penalty=penalty, presence_penalty=-2, logit_bias=bias)
        state.occupy(0, device_settings(params, 0), history)
        tokens, _, _ = sample_triton(logits, torch.tensor([0], device=device), state, EOS)
        assert tokens[0] == by_hand(logits[0], params, 0, history)


def test_steps_follow_each_other_without_the_host(device: torch.device) -> None:
    """Histories grow on the device: three steps equal three steps by hand."""
    params = [SamplingParams(temperature=1.0, no_repeat_ngram=1, repetition_penalty=1.3), SamplingParams()]
    histories, seeds = [[BOS], [BOS]], [3, 4]
    state = start(params, seeds, histories, device)
    for step in range(3):
        logits = random(2, VOCABULARY, device=device, seed=step)
        tokens, _, _ = sample_triton(logits, torch.arange(2, device=device), state, EOS)
        for row in range(2):
            wanted = by_hand(logits[row], params[row], seeds[row], histories[row])
            assert tokens[row] == wanted
            histories[row].append(int(tokens[row]))


@pytest.mark.usefixtures("poisoned")
def test_rows_find_their_slots(device: torch.device) -> None:
    params = [SamplingParams(temperature=1.0, top_k=9) for _ in range(4)]
    histories, seeds = [[BOS, 7]] * 4, [5, 6, 7, 8]
    state = start(params, seeds, histories, device)
    logits = random(4, VOCABULARY, device=device)
    logits[1] = math.nan  # nobody's
    tokens, logprobs, faults = sample_triton(logits, torch.tensor([2, -1, 0, 3], device=device), state, EOS)
    assert [int(tokens[row]) for row in (0, 2, 3)] == [
        by_hand(logits[row], params[0], seeds[slot], histories[0]) for row, slot in ((0, 2), (2, 0), (3, 3))
    ]
    assert (tokens[1], logprobs[1], faults[1]) == (0, 0, 0)
    assert state.lengths.tolist() == [3, 2, 3, 3]


@pytest.mark.filterwarnings("ignore:invalid value")  # numpy's, in the interpreter: infinity - infinity
def test_faults(device: torch.device) -> None:
    params = [SamplingParams(temperature=temperature) for temperature in (0, 1)] * 3
    params += [SamplingParams(temperature=temperature, no_repeat_ngram=1) for temperature in (0, 1)]
    logits = torch.zeros(8, 4, device=device)
    for row, value in ((0, math.nan), (1, math.nan), (2, math.inf), (3, -math.inf), (4, 1.0), (5, 1.0)):
        logits[row, 1] = value
    state = sampling_state(8, 16, device)
    for slot, one in enumerate(params):
        state.occupy(slot, device_settings(one, 0), [0, 1, 2, 3])
    tokens, _, faults = sample_triton(logits, torch.arange(8, device=device), state, EOS)
    assert faults.tolist() == [NOT_FINITE] * 4 + [0, 0] + [NONE_ALLOWED] * 2
    assert tokens[faults != 0].tolist() == [0] * 6


def test_a_history_that_is_full_stays_inside(device: torch.device) -> None:
    state = sampling_state(2, 3, device)
    state.occupy(0, device_settings(SamplingParams(repetition_penalty=2.0), 0), [BOS, 4, 4])
    for _ in range(2):
        sample_triton(torch.ones(1, 5, device=device), torch.tensor([0], device=device), state, EOS)
    assert state.history.tolist() == [[BOS, 4, 4], [0, 0, 0]]
    assert state.lengths.tolist() == [5, 0]


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_kernel_at_the_real_vocabulary(device: torch.device, name: str) -> None:
    rows = 30
    logits = random(rows, 32000, device=device, scale=2.0)
    logits[1::3] = logits[1::3].bfloat16().float()
    state = sampling_state(rows, 16, device)
    params = SamplingParams(**SETTINGS[name])
    for slot in range(rows):
        state.occupy(slot, device_settings(params, slot), [BOS, 5, 6, 5])
    tokens, _, _ = sample_triton(logits, torch.arange(rows, device=device), state, EOS)
    assert tokens.tolist() == [by_hand(logits[row], params, row, [BOS, 5, 6, 5]) for row in range(rows)]


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    state = sampling_state(2, 3, device)
    logits, slots = torch.zeros(2, 8, device=device), torch.arange(2, device=device)
    for bad, words in (
        ((logits.double(), slots), "float64 (2, 8)"),
        ((logits.T.contiguous().T, slots), "float32 (2, 8)"),
        ((logits, slots.int()), "int32 (2,)"),
        ((logits, torch.arange(4, device=device)[::2]), "int64 (2,)"),
        ((logits[:, :2], slots), "end token 2"),
    ):
        with pytest.raises(ValueError, match=re.escape(words) + ".* came; wanted"):
            sample_triton(*bad, state, EOS)
