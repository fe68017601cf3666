"""What is guessed to come next, and that it changes nothing."""

from __future__ import annotations

from collections import Counter

import torch

from owl_fast.engine.sampling import SamplingParams
from owl_fast.engine.speculation import Guesser
from owl_fast.prompts import IMAGE_ID
from tests.engine.fakes import BOS, VOCAB, Oracle, expected, logits_after, make_loop, make_request, run_alone


def test_what_followed_last_time_is_guessed_again() -> None:
    guesser = Guesser([1, 5, 6, 7, 8, 9, 5, 6])
    assert guesser.guess(2) == [7, 8]
    assert guesser.guess(9) == [7, 8, 9, 5, 6]
    guesser.extend([10, 4, 5, 6])
    assert guesser.guess(2) == [10, 4], "the last occurrence counts"


def test_the_longest_beginning_in_common_decides() -> None:
    assert Guesser([1, 2, 3, 4, 50, 9, 2, 3, 4, 60, 3, 4, 70, 1, 2, 3, 4]).guess(1) == [50]
    assert Guesser([1, 2, 3, 4, 50, 9, 2, 3, 4, 60, 3, 4, 70, 8, 3, 4]).guess(1) == [70]


def test_nothing_is_guessed_without_a_precedent_or_into_a_picture() -> None:
    assert Guesser([1, 2, 3, 4]).guess(4) == []
    assert Guesser([]).guess(4) == []
    assert Guesser([5, 6, 7, IMAGE_ID, IMAGE_ID, 5, 6]).guess(4) == [7]


def test_with_guesses_tokens_are_drawn_from_the_model_s_distribution() -> None:
    """The second token of answers that begin alike, always drawn beside a guess, against the model's
    probabilities by a chi-square test."""
    first = expected(make_request([BOS, 5]))[0]
    seen: Counter[int] = Counter()
    loop = make_loop(guessed_rows=4)
    for seed in range(6000):
        params = SamplingParams(max_tokens=3, temperature=1.0, seed=seed, ignore_eos=True)
        request = make_request([BOS, 5], params)
        if expected(request, SamplingParams(max_tokens=1, temperature=1.0, seed=seed)) != [first]:
            continue
        request.guesser = Oracle(request)
        run_alone(loop, request)
        seen[request.generated[1]] += 1
    count = seen.total()
    wanted = torch.softmax(logits_after([BOS, 5, first]), -1) * count
    common = wanted >= 5  # the rest counts as one
    observed = torch.tensor([float(seen[token]) for token in range(VOCAB)])
    cells = [torch.cat([part[common], part[~common].sum()[None]]) for part in (observed, wanted)]
    statistic = float(((cells[0] - cells[1]) ** 2 / cells[1]).sum())
    freedom = len(cells[0]) - 1
    assert torch.special.gammaincc(torch.tensor(freedom / 2), torch.tensor(statistic / 2)) > 1e-3
    assert loop.stats().guesses_right > 0
