"""Text that may be shown: stop strings cut exactly, and never leak in part."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from owl_fast.engine.outputs import TextStream, Timings


class Pieces:
    """Id i is the i-th of the given pieces."""

    def __init__(self, pieces: list[str], rest: str = "") -> None:
        self.pieces, self.rest = pieces, rest

    def push(self, token_id: int) -> str:
        return self.pieces[token_id]

    def flush(self) -> str:
        return self.rest


def shown_steps(pieces: list[str], stops: tuple[str, ...], rest: str = "") -> list[str]:
    """What is shown after each piece, and at the end."""
    stream = TextStream(Pieces(pieces, rest), stops)
    steps, text = [], ""
    for index in range(len(pieces)):
        text += stream.push(index)
        steps.append(text)
        if stream.stopped:
            break
    steps.append(text + stream.close())
    assert stream.shown == steps[-1]
    return steps


@given(
    pieces=st.lists(st.text("abc", max_size=4), max_size=12),
    stop=st.text("abc", min_size=1, max_size=4),
    rest=st.text("abc", max_size=3),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_one_stop_string_cuts_at_its_first_occurrence(pieces: list[str], stop: str, rest: str) -> None:
    whole = "".join(pieces)
    whole += "" if stop in whole else rest
    wanted = whole.split(stop)[0]
    steps = shown_steps(pieces, (stop,), rest)
    assert steps[-1] == wanted
    assert all(wanted.startswith(step) for step in steps)


@given(
    pieces=st.lists(st.text("abc", max_size=4), max_size=12),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3).map(tuple),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_nothing_shown_is_taken_back_and_no_stop_string_is_shown(
    pieces: list[str], stops: tuple[str, ...]
) -> None:
    steps = shown_steps(pieces, stops)
    for before, after in pairwise(steps):
        assert after.startswith(before)
    assert not any(stop in steps[-1] for stop in stops)
    if not stops:
        assert steps[:-1] == ["".join(pieces[: n + 1]) for n in range(len(pieces))]


@pytest.mark.parametrize(
    ("pieces", "steps"),
    [
        (["one ", "E", "N", "D", " two"], ["one ", "one ", "one ", "one ", "one "]),
        (["one ", "E", "N", "ough"], ["one ", "one ", "one ", "one ENough", "one ENough"]),
        (["one E"], ["one ", "one E"]),
    ],
)
def test_what_may_become_a_stop_string_is_held_back(pieces: list[str], steps: list[str]) -> None:
    assert shown_steps(pieces, ("END",)) == steps


def test_tokens_per_second_leave_the_prompt_out() -> None:
    assert Timings(prompt_ms=500, predicted_ms=100, predicted_n=11).predicted_per_second == 100
    assert Timings(prompt_ms=500, predicted_n=1).predicted_per_second == 2
    assert Timings().predicted_per_second == 0
