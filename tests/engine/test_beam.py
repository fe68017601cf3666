"""Beam search against exhaustive search and against rules worked out by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from owl_fast.engine.beam import BeamSearch
from owl_fast.engine.sampling import SamplingParams

BOS, EOS = 1, 2


def table(length: int, vocab: int, seed: int) -> dict[tuple[int, ...], Tensor]:
    """Log-probs (vocab,) after every prefix shorter than `length`."""
    generator = torch.Generator().manual_seed(seed)
    prefixes = itertools.chain.from_iterable(itertools.product(range(vocab), repeat=n) for n in range(length))
    return {prefix: torch.log_softmax(torch.randn(vocab, generator=generator), 0) for prefix in prefixes}


def search(params: SamplingParams, logprobs: dict[tuple[int, ...], Tensor], length: int) -> BeamSearch:
    beams = BeamSearch(params, BOS, EOS, length)
    while not beams.done:
        before = [beam.token_ids for beam in beams.live]
        parents = beams.advance(torch.stack([logprobs[ids] for ids in before]))
        assert [beam.token_ids[:-1] for beam in beams.live] == [before[parent] for parent in parents]
    return beams


PENALTIES: dict[str, Any] = {
    "presence_penalty": 0.7,
    "frequency_penalty": -1.3,
    "logit_bias": {0: 0.9, EOS: -1.1},
}


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("options", [{}, PENALTIES], ids=["plain", "penalties"])
@pytest.mark.parametrize("seed", range(4))
def test_a_beam_as_wide_as_the_tree_finds_the_best_answer(
    seed: int, options: dict[str, Any], length_penalty: float
) -> None:
    """Of all answers the one whose log-probs, penalties and biases sum to most."""
    vocab, length = 4, 3
    logprobs = table(length, vocab, seed)
    plain = SamplingParams(**options)
    presence, frequency, bias = plain.presence_penalty, plain.frequency_penalty, dict(plain.biases)
    answers = {}
    for n in range(1, length + 1):
        for ids in itertools.product(range(vocab), repeat=n):
            ended = ids[-1] == EOS
            if EOS in ids[:-1] or (n < length and not ended):
                continue
            total = sum(float(logprobs[ids[:k]][ids[k]]) for k in range(n))
            counts = [ids[:k].count(ids[k]) for k in range(n)]
            total -= sum(frequency * count + presence * (count > 0) for count in counts)
            total += sum(bias.get(token, 0.0) for token in ids)
            answers[ids] = total / (n if ended else n + 1) ** length_penalty
    params = SamplingParams(beams=vocab**length, length_penalty=length_penalty, **options)
    best = search(params, logprobs, length).best
    assert best.beam.token_ids == max(answers, key=lambda ids: answers[ids])
    assert math.isclose(best.score, max(answers.values()), rel_tol=1e-5)
    own = sum(float(logprobs[best.beam.token_ids[:k]][token]) for k, token in enumerate(best.beam.token_ids))
    assert math.isclose(sum(best.beam.logprobs), own, rel_tol=1e-5)


def test_early_stopping_ends_when_enough_answers_are_complete() -> None:
    sure = torch.log(torch.tensor([0.05, 0.05, 0.8, 0.1]))  # the end token is likeliest everywhere
    logprobs = dict.fromkeys(table(8, 4, 0), sure)
    early = search(SamplingParams(beams=2, early_stopping=True), logprobs, 8)
    assert early.best.beam.token_ids == (EOS,)
    assert early.best.ended
    assert len(early.live[0].token_ids) == 2


def test_an_end_token_beyond_the_first_width_candidates_is_no_answer() -> None:
    beams = BeamSearch(SamplingParams(beams=2, early_stopping=True), BOS, EOS, 9)
    beams.advance(torch.log(torch.tensor([[0.5, 0.4, 0.05, 0.05]])))
    # Candidates in order: end of beam 0, its token 0, end of beam 1 (the third: too late), its token 0.
    parents = beams.advance(torch.log(torch.tensor([[0.45, 0.03, 0.5, 0.02], [0.4, 0.05, 0.5, 0.05]])))
    assert parents == [0, 1]
    assert [beam.token_ids for beam in beams.live] == [(0, 0), (1, 0)]
    assert not beams.done
    assert beams.best.beam.token_ids == (0, EOS)


def test_ignore_eos_keeps_the_beam_alive() -> None:
    sure = torch.log(torch.tensor([0.05, 0.05, 0.8, 0.1]))
    logprobs = dict.fromkeys(table(4, 4, 0), sure)
    best = search(SamplingParams(beams=2, ignore_eos=True), logprobs, 4).best
    assert best.beam.token_ids == (EOS,) * 4
