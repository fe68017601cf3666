"""Sampling of a batch on a GPU, inside a captured graph: one program per row, one launch, nothing sorted.

The rules are those of sampling.py, behind the penalties of the engine: repetition penalty (positive scores
divided, negative ones multiplied), presence and frequency penalty, bias, no-repeat n-gram, minimum length.

A program keeps its row in a scratch of 4 bytes a token, which stays in its multiprocessor's L1 cache: first
the scores, as whole numbers of the same order ("keys"), then the weights. A threshold (the k-th score, the
weight at which a sum is reached) is built bit by bit from the top: 31 counts or sums over the row, each about
a microsecond. A row in registers would save little of that and spills.
"""

from __future__ import annotations

import torch
from torch import Tensor

from owl_fast.kernels.launch import GPU_DTYPES, check, jit, launch, power_of_two, tl
from owl_fast.kernels.sampling import FINE, MAX_BIASES, ONE, SamplingState

NOT_FINITE, NONE_ALLOWED = 1, 2  # faults
STEP = 512  # tokens of a history, or biases, looked at together


@jit
def _key_of(x):
    """Whole numbers ordered as the floats are; -0 counts as 0."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@jit
def _score_of(key):
    return tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.float32, bitcast=True)


@jit
def _read(logits, scratch, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Keys of a row into the scratch: (whether all are finite, log of the sum of exp)."""
    finite = 0
    largest = float("-inf")
    total = 0.0
    for start in range(0, WIDTH, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        x = tl.load(logits + cols, mask=cols < WIDTH, other=float("-inf")).to(tl.float32)
        tl.store(scratch + cols, _key_of(x), mask=cols < WIDTH)
        finite += tl.sum((tl.abs(x) < float("inf")).to(tl.int32))
        before = largest
        largest = tl.maximum(before, tl.max(x))
        total = total * tl.exp(before - largest) + tl.sum(tl.exp(x - largest))
    return finite == WIDTH, largest + tl.log(total)


@jit
def _count(counts, history, length, STEP: tl.constexpr):
    """How often each token of the history was generated; the begin token at its head was not."""
    for start in range(0, length, STEP):
        at = start + tl.arange(0, STEP)
        seen = tl.load(history + at, mask=at < length, other=0)
        tl.store(counts + seen, tl.zeros((STEP,), tl.int32), mask=at < length)
    tl.debug_barrier()
    for start in range(0, length, STEP):
        at = start + tl.arange(0, STEP)
        seen = tl.load(history + at, mask=at < length, other=0)
        tl.atomic_add(counts + seen, 1, mask=(at > 0) & (at < length))
    tl.debug_barrier()


@jit
def _penalise(
    logits, scratch, counts, history, length, penalty, presence, frequency,
    ONE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Keys of tokens of the history. A token that comes twice is written twice, from its logit: the same."""
    counted = 0
    if (presence != 0) | (frequency != 0):
        _count(counts, history, length, STEP)
        counted = length
    for start in range(0, length, STEP):
        at = start + tl.arange(0, STEP)
        seen = tl.load(history + at, mask=at < length, other=0)
        x = tl.load(logits + seen, mask=at < length, other=0.0).to(tl.float32)
        x = tl.where(x < 0, x * penalty, tl.div_rn(x, penalty + tl.zeros_like(x)))
        count = tl.load(counts + seen, mask=at < counted, other=0).to(tl.int64)
        charge = count * frequency + tl.where(count > 0, presence, 0)
        # Times a power of two: exact, and so the same whether it is fused with the subtraction or not.
        x -= charge.to(tl.float32) * (1.0 / ONE)
        tl.store(scratch + seen, _key_of(x), mask=at < length)
    tl.debug_barrier()


@jit
def _bias(scratch, biased, biases, count, STEP: tl.constexpr):
    """Keys of the biased tokens, no two of which are the same."""
    at = tl.arange(0, STEP)
    token = tl.load(biased + at, mask=at < count, other=0)
    x = _score_of(tl.load(scratch + token, mask=at < count, other=0))
    x += tl.load(biases + at, mask=at < count, other=0.0)
    tl.debug_barrier()  # threads in excess hold the same tokens: none reads what another has written
    tl.store(scratch + token, _key_of(x), mask=at < count)
    tl.debug_barrier()


@jit
def _forbid_repeats(scratch, history, length, ngram, STEP: tl.constexpr):
    forbidden = _key_of(tl.full((STEP,), float("-inf"), tl.float32))
    for start in range(0, length - ngram + 1, STEP):
        at = start + tl.arange(0, STEP)
        same = at + ngram <= length
        for i in range(0, ngram - 1):
            recent = tl.load(history + length - ngram + 1 + i)
            same = same & (tl.load(history + at + i, mask=same, other=-1) == recent)
        end = tl.load(history + at + ngram - 1, mask=same, other=0)
        tl.store(scratch + end, forbidden, mask=same)


@jit
def _first_of(scratch, wanted, behind, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """The id of the entry that is `wanted` and has `behind` such entries before it."""
    found = tl.full((), WIDTH - 1, tl.int32)
    for start in range(0, WIDTH, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        equal = (tl.load(scratch + cols, mask=cols < WIDTH, other=-1) == wanted) & (cols < WIDTH)
        here = equal & (tl.cumsum(equal.to(tl.int32), 0) == behind + 1)
        found = tl.minimum(found, tl.min(tl.where(here, cols, WIDTH - 1)))
        behind -= tl.sum(equal.to(tl.int32))
    return found


@jit
def _largest(scratch, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    found = tl.full((BLOCK,), -(1 << 31), tl.int32)
    for start in range(0, WIDTH, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        found = tl.maximum(found, tl.load(scratch + cols, mask=cols < WIDTH, other=-(1 << 31)))
    return tl.max(found)


@jit
def _reached(scratch, least, WEIGHED: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Number, or sum, of the entries that are at least `least`."""
    found = tl.zeros((BLOCK,), tl.int64 if WEIGHED else tl.int32)
    for start in range(0, WIDTH, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        values = tl.load(scratch + cols, mask=cols < WIDTH, other=-(1 << 31))
        if WEIGHED:
            found += tl.where(values >= least, values, 0).to(tl.int64)
        else:
            found += ((values >= least) & (cols < WIDTH)).to(tl.int32)
    return tl.sum(found)


@jit
def _threshold(scratch, target, lowest, WEIGHED: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """The largest t with _reached(t) > target; lowest: where that holds, 0 or the smallest int32."""
    found = lowest
    step = tl.full((), 1 << 30, tl.int32)
    for _ in range(31):
        candidate = found + step
        reached = _reached(scratch, candidate, WEIGHED, WIDTH, BLOCK)
        found = tl.where(reached > target, candidate, found)
        step = step // 2
    return found


@jit
def _weigh(
    scratch, largest, scale, top_k,
    ONE: tl.constexpr, FINE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Weights instead of keys, 0 for those less than the top_k-th: their sum."""
    least = tl.full((), -(1 << 31), tl.int32)
    if (top_k > 0) & (top_k < WIDTH):
        lowest = tl.where(_reached(scratch, 0, False, WIDTH, BLOCK) >= top_k, 0, -(1 << 31)).to(tl.int32)
        least = _threshold(scratch, top_k - 1, lowest, False, WIDTH, BLOCK)
    total = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, WIDTH, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        key = tl.load(scratch + cols, mask=cols < WIDTH, other=0)
        x = tl.floor((_score_of(key) - largest) * scale * FINE + 0.5) * (1.0 / FINE)
        weight = (tl.exp2(x) * ONE).to(tl.int32)
        weight = tl.where((key >= least) & (cols < WIDTH), weight, 0)
        tl.store(scratch + cols, weight, mask=cols < WIDTH)
        total += weight.to(tl.int64)
    tl.debug_barrier()
    return tl.sum(total)


@jit
def _kept_sum(scratch, total, top_p, least_weight, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Sum of what top-p and min-p leave: both keep the beginning of one order, so the shorter one counts."""
    kept = total
    if top_p != 0:
        limit = tl.umulhi(top_p.to(tl.uint64), total.to(tl.uint64)).to(tl.int64)
        limit = tl.maximum(limit, 1)
        last = _threshold(scratch, limit - 1, tl.full((), 0, tl.int32), True, WIDTH, BLOCK)
        before = _reached(scratch, last + 1, True, WIDTH, BLOCK)
        kept = before + ((limit - 1 - before) // last + 1) * last
    if least_weight > 0:
        kept = tl.minimum(kept, _reached(scratch, least_weight.to(tl.int32), True, WIDTH, BLOCK))
    return kept


@jit
def _random_bits(seed, position):
    """sampling.random_bits."""
    counter = position.to(tl.uint32)
    zero = counter * 0
    low, high, _, _ = tl.philox(seed, counter, zero, zero, zero)
    return (high.to(tl.uint64) << 32) | low.to(tl.uint64)


@jit
def _draw(scratch, kept, bits, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """The token at which the running sum, likeliest first, passes bits / 2^64 * kept."""
    drawn = tl.umulhi(bits, kept.to(tl.uint64)).to(tl.int64)
    weight = _threshold(scratch, drawn, tl.full((), 0, tl.int32), True, WIDTH, BLOCK)
    behind = (drawn - _reached(scratch, weight + 1, True, WIDTH, BLOCK)) // weight
    return _first_of(scratch, weight, behind.to(tl.int32), WIDTH, BLOCK)


@jit
def _sample_kernel(
    logits, slots, floats, integers, history, lengths, biased, biases, scratch, counts, tokens, logprobs,
    faults, logits_stride, longest, end_token,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ONE: tl.constexpr, FINE: tl.constexpr, STEP: tl.constexpr,
    MAX_BIASES: tl.constexpr, NOT_FINITE: tl.constexpr, NONE_ALLOWED: tl.constexpr,
):  # fmt: skip
    """One row per program; a row without a slot gets token 0.

    integers: 0 top_k, 1 top_p, 2 least_weight, 3 no_repeat_ngram, 4 min_tokens, 5 seed, 6 presence,
    7 frequency, 8 the number of biases (SamplingState).
    """
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    token = tl.full((), 0, tl.int32)
    logprob = tl.full((), 0.0, tl.float32)
    fault = tl.full((), 0, tl.int32)
    if slot >= 0:
        logits += row * logits_stride
        scratch += row * WIDTH
        history += slot * longest
        integers += slot * 9
        length = tl.load(lengths + slot)
        kept_length = tl.minimum(length, longest)
        scale, penalty = tl.load(floats + slot * 2), tl.load(floats + slot * 2 + 1)
        ngram, min_tokens = tl.load(integers + 3).to(tl.int32), tl.load(integers + 4)
        presence, frequency = tl.load(integers + 6), tl.load(integers + 7)
        bias_count = tl.load(integers + 8).to(tl.int32)

        finite, log_sum = _read(logits, scratch, WIDTH, BLOCK)
        tl.debug_barrier()
        if (penalty != 1.0) | (presence != 0) | (frequency != 0):
            row_counts = counts + row * WIDTH
            _penalise(
                logits, scratch, row_counts, history, kept_length, penalty, presence, frequency, ONE, STEP
            )
        if bias_count > 0:
            _bias(scratch, biased + slot * MAX_BIASES, biases + slot * MAX_BIASES, bias_count, STEP)
        if ngram > 0:
            _forbid_repeats(scratch, history, kept_length, ngram, STEP)
        if length - 1 < min_tokens:
            tl.debug_barrier()
            tl.store(scratch + end_token, _key_of(tl.full((), float("-inf"), tl.float32)))
        tl.debug_barrier()

        best = _largest(scratch, WIDTH, BLOCK)
        largest = _score_of(best)
        fault = tl.where(finite, tl.where(largest > float("-inf"), 0, NONE_ALLOWED), NOT_FINITE)
        if fault == 0:
            if scale > 0.0:
                total = _weigh(scratch, largest, scale, tl.load(integers), ONE, FINE, WIDTH, BLOCK)
                top_p, least_weight = tl.load(integers + 1), tl.load(integers + 2)
                kept = _kept_sum(scratch, total, top_p, least_weight, WIDTH, BLOCK)
                bits = _random_bits(tl.load(integers + 5), length - 1)
                token = _draw(scratch, kept, bits, WIDTH, BLOCK)
            else:
                token = _first_of(scratch, best, tl.full((), 0, tl.int32), WIDTH, BLOCK)
        logprob = tl.load(logits + token).to(tl.float32) - log_sum
        tl.store(history + length, token, mask=length < longest)
        tl.store(lengths + slot, length + 1)
    tl.store(tokens + row, token.to(tl.int64))
    tl.store(logprobs + row, logprob)
    tl.store(faults + row, fault.to(tl.int32))


def launch_spec(vocabulary: int) -> dict[str, int]:
    """Steps of 8192 tokens, 8 for each of 1024 threads: the whole multiprocessor for one row, since rows are
    fewer than multiprocessors. Not measured yet."""
    block = min(max(power_of_two(vocabulary), 32), 8192)
    faults = {"NOT_FINITE": NOT_FINITE, "NONE_ALLOWED": NONE_ALLOWED}
    numbers = {"ONE": ONE, "FINE": FINE, "STEP": STEP, "MAX_BIASES": MAX_BIASES}
    return {"WIDTH": vocabulary, "BLOCK": block, **numbers, **faults, "num_warps": max(block // 256, 1)}


def sample_triton(
    logits: Tensor, slots: Tensor, state: SamplingState, end_token: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose for each row of logits (B, V), append to its history, and go one position on.

    slots (B,) int64: whose row it is, no two the same; -1: nobody's, which gives 0, 0, 0.
    Returns tokens (B,) int64, their log-probs before penalties and temperature (B,) fp32, and faults (B,)
    int32: 0, NOT_FINITE logits, or NONE_ALLOWED by penalties; with a fault the token is 0.
    """
    check(logits.dim() == 2 and logits.dtype in GPU_DTYPES, logits, "fp32, bf16 or fp16 (B, V)")
    check(logits.stride(1) == 1, logits, "logits of a row side by side")
    rows, vocabulary = logits.shape
    check(0 <= end_token < vocabulary, f"end token {end_token}", f"one of {vocabulary} tokens")
    fits = slots.shape == (rows,) and slots.dtype == torch.int64 and slots.is_contiguous()
    check(fits and slots.device == logits.device, slots, f"contiguous int64 ({rows},) on {logits.device}")
    check(state.history.device == logits.device, state.history, f"a state on {logits.device}")
    scratch = torch.empty(rows, vocabulary, dtype=torch.int32, device=logits.device)
    counts = torch.empty_like(scratch)
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    logprobs = torch.empty(rows, dtype=torch.float32, device=logits.device)
    faults = torch.empty(rows, dtype=torch.int32, device=logits.device)
    buffers = (*state, scratch, counts, tokens, logprobs, faults)
    strides = logits.stride(0), state.history.shape[1]
    launch(_sample_kernel, (rows,), logits, slots, *buffers, *strides, end_token, **launch_spec(vocabulary))
    return tokens, logprobs, faults
