"""Choosing tokens: parameter checks, penalties, filters, draws."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from owl_fast.engine.sampling import (
    SamplingParams,
    choose,
    device_settings,
    process_scores,
    repeated_ngram_ends,
    seed_of,
)
from owl_fast.errors import OwlError, ParameterError, UnsupportedError
from owl_fast.kernels.sampling import kept_weights

BOS, EOS = 1, 2
# Whole 64ths: scores that lie next to each other count as equal, and the rules below would tell them apart.
rows = st.lists(st.integers(-512, 512), min_size=4, max_size=24).map(lambda row: torch.tensor(row) / 64)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", 2.5),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", True),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", 1.0),
        ("repetition_penalty", 0),
        ("no_repeat_ngram", -2),
        ("beams", 0),
        ("early_stopping", 1),
        ("seed", 1 << 63),
        ("stop", ("a", "")),
        ("stop", 5),
        ("stop", ("a", 5)),
        ("min_tokens", -1),
        ("logprobs", 21),
        ("n", 0),
        ("n", 17),
        ("n", True),
        ("presence_penalty", 2.1),
        ("presence_penalty", math.nan),
        ("frequency_penalty", -2.1),
        ("frequency_penalty", "much"),
    ],
)
def test_a_value_out_of_range_is_named(name: str, value: Any) -> None:
    with pytest.raises(ParameterError, match=name):
        SamplingParams(**{name: value})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (5, "logit_bias is 5; wanted {token id: bias}"),
        ("12", "logit_bias is '12'; wanted {token id: bias}"),
        ([5], "logit_bias is [5]; wanted {token id: bias}"),
        ({"5": 1.0}, "an id of logit_bias is '5'; wanted int"),
        ({True: 1.0}, "an id of logit_bias is True; wanted int"),
        ({-1: 1.0}, "an id of logit_bias is -1; wanted 0 or more"),
        ({5: "1"}, "logit_bias of token 5 is '1'; wanted float"),
        ({5: math.nan}, "logit_bias of token 5 is nan; wanted float"),
        ({5: -100.5}, "logit_bias of token 5 is -100.5; wanted -100 to 100"),
        (((5, 1.0), (5, 2.0)), "wanted each token once"),
        (dict.fromkeys(range(301), 0.0), "logit_bias has 301 ids; wanted at most 300"),
    ],
    ids=lambda given: repr(given)[:40],
)
def test_a_bias_that_is_none_is_named(given: Any, words: str) -> None:
    with pytest.raises(ParameterError, match=re.escape(words)):
        SamplingParams(logit_bias=given)


def test_a_bias_is_kept_as_pairs_and_given_on() -> None:
    params = SamplingParams(logit_bias={7: 1, 3: -0.5})
    assert params.biases == params.logit_bias == ((3, -0.5), (7, 1.0))
    assert params.changed({"n": 2}).biases == params.biases
    assert hash(params) == hash(SamplingParams(logit_bias=((7, 1), (3, -0.5))))


@pytest.mark.parametrize("options", [{"temperature": 0.5}, {"stop": "x"}, {"logprobs": 2}, {"n": 2}], ids=str)
def test_what_beams_cannot_honour_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=next(iter(options))):
        SamplingParams(beams=2, **options)


def test_stop_is_one_string_or_several() -> None:
    assert SamplingParams(stop="ab").stop == ("ab",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]


def test_min_tokens_within_max_tokens() -> None:
    with pytest.raises(OwlError, match="max_tokens"):
        SamplingParams(max_tokens=3, min_tokens=4)


def test_repetition_penalty_touches_the_history_only() -> None:
    scores = torch.tensor([2.0, -2.0, 1.0, 3.0, -1.0])
    out = process_scores(scores, [BOS, 3, 3], SamplingParams(repetition_penalty=2.0), EOS)
    assert out.tolist() == [2.0, -4.0, 1.0, 1.5, -1.0]
    assert scores.tolist() == [2.0, -2.0, 1.0, 3.0, -1.0]


penalties = st.floats(-2, 2) | st.just(0.0)


@given(
    scores=rows,
    generated=st.lists(st.integers(0, 3), max_size=12),
    begin=st.integers(0, 3),
    repetition=st.floats(0.3, 3) | st.just(1.0),
    presence=penalties,
    frequency=penalties,
    bias=st.dictionaries(st.integers(0, 3), st.floats(-100, 100)),
    ngram=st.integers(0, 3),
    min_tokens=st.integers(0, 12),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_penalties_equal_their_formulas(
    scores: Tensor,
    generated: list[int],
    begin: int,
    repetition: float,
    presence: float,
    frequency: float,
    bias: dict[int, float],
    ngram: int,
    min_tokens: int,
) -> None:
    """In plain Python's float64; the begin token counts for the repetition penalty alone."""
    params = SamplingParams(
        repetition_penalty=repetition,
        presence_penalty=presence,
        frequency_penalty=frequency,
        logit_bias=bias,
        no_repeat_ngram=ngram,
        min_tokens=min_tokens,
    )
    history = [begin, *generated]
    before = scores.clone()
    ours = process_scores(scores, history, params, EOS).tolist()
    assert torch.equal(scores, before)
    for token, score in enumerate(before.tolist()):
        if token in repeated_ngram_ends(history, ngram) or (token == EOS and len(generated) < min_tokens):
            assert ours[token] == -math.inf
            continue
        if token in history:
            score = score * repetition if score < 0 else score / repetition
        count = generated.count(token)
        charge = frequency * count + (presence if count else 0)
        size = abs(score) + abs(charge) + abs(bias.get(token, 0.0))
        # Rounded to float32 four times: the penalised score, the charge, the bias and the sums.
        assert abs(ours[token] - (score - charge + bias.get(token, 0.0))) <= 4 * 2.0**-24 * size + 2.0**-27


def test_the_first_answer_has_the_seed_itself() -> None:
    for seed in (0, -1, 7, (1 << 63) - 1, -(1 << 63)):
        seeds = [seed_of(seed, index) for index in range(16)]
        assert seeds[0] == seed
        assert len(set(seeds)) == 16
        assert all(-(1 << 63) <= one < 1 << 63 for one in seeds)
    assert seed_of(7, 3) == seed_of(7, 3) != seed_of(8, 3)


@pytest.mark.parametrize(
    ("history", "size", "banned"),
    [
        ([1], 1, {1}),
        ([1], 2, set()),
        ([1, 5, 1], 2, {5}),
        ([1, 5, 6, 5], 2, {6}),
        ([1, 5, 6, 5, 7, 5], 2, {6, 7}),
        ([5, 5], 2, {5}),
        ([1, 5, 6, 7, 5, 6], 3, {7}),
        ([1, 5, 6], 4, set()),
        ([1, 5, 1], 0, set()),
    ],
)
def test_no_repeat_ngram(history: list[int], size: int, banned: set[int]) -> None:
    assert repeated_ngram_ends(history, size) == banned


def test_end_token_is_forbidden_before_min_tokens() -> None:
    params = SamplingParams(min_tokens=2)
    for generated, is_banned in (([], True), ([5], True), ([5, 5], False)):
        scores = process_scores(torch.zeros(8), [BOS, *generated], params, EOS)
        assert (scores[EOS] == -math.inf) == is_banned


def kept_by_the_rules(scores: Tensor, params: SamplingParams) -> set[int]:
    """The token set by plain lists, one rule after the other."""
    scaled = (scores.double() / params.temperature).tolist()
    keep = sorted(range(len(scaled)), key=lambda i: (-scaled[i], i))
    if params.top_k:
        least = scaled[keep[: params.top_k][-1]]
        keep = [i for i in keep if scaled[i] >= least]
    weights = {i: math.exp(scaled[i] - scaled[keep[0]]) for i in keep}
    if params.top_p < 1:
        total, before, inside = sum(weights.values()), 0.0, []
        for i in keep:
            if before / total < params.top_p - 1e-12:
                inside.append(i)
            before += weights[i]
        keep = inside
    least = max(params.min_p * (1 - 1e-9), 2.0**-30)  # what is less likely than that is never drawn
    return {i for i in keep if weights[i] >= least}


@given(
    scores=rows,
    temperature=st.floats(0.1, 3),
    top_k=st.integers(0, 12),
    top_p=st.floats(0.05, 1),
    min_p=st.floats(0, 0.6),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_kept_tokens_equal_the_rules(
    scores: Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    weights, ids = kept_weights(scores, device_settings(params, 0))
    kept = {int(i) for i, weight in zip(ids, weights, strict=True) if weight > 0}
    wanted = kept_by_the_rules(scores, params)
    # At a boundary of top-p or min-p the two roundings may differ by the token on it.
    assert len(kept ^ wanted) <= 1
    assert int(ids[0]) in kept


def test_draws_follow_the_distribution() -> None:
    scores = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5])
    params = SamplingParams(temperature=1.0)
    draws = 20_000
    counts = torch.zeros(5)
    for position in range(draws):
        token = choose(scores, params, 7, position)
        assert token is not None
        counts[token] += 1
    wanted = torch.softmax(scores, 0) * draws
    chi_square = float(((counts - wanted) ** 2 / wanted).sum())
    assert chi_square < 23.5  # p = 1e-4 at 4 degrees of freedom


def test_draws_depend_on_seed_and_position_only() -> None:
    params, scores = SamplingParams(temperature=1.0), torch.zeros(1000)
    state = torch.get_rng_state()
    first = [choose(scores, params, 3, p) for p in range(50)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert [choose(scores, params, 3, p) for p in range(50)] == first
    assert [choose(scores, params, 4, p) for p in range(50)] != first
    assert len(set(first)) > 40


def test_greedy_takes_the_first_of_equals_and_nothing_of_nothing() -> None:
    greedy = SamplingParams()
    assert choose(torch.tensor([0.0, 3.0, 3.0]), greedy, 0, 0) == 1
    assert choose(torch.full((3,), -math.inf), greedy, 0, 0) is None
    assert choose(torch.full((3,), -math.inf), SamplingParams(temperature=1.0), 0, 0) is None


def test_top_k_of_one_is_greedy() -> None:
    scores = torch.randn(50, generator=torch.Generator().manual_seed(0))
    params = SamplingParams(temperature=2.0, top_k=1)
    assert {choose(scores, params, seed, 0) for seed in range(20)} == {int(scores.argmax())}
