from __future__ import annotations

import dataclasses
import random

import pytest

from owl_fast.serving.admission import Admission, Ticket
from owl_fast.serving.errors import ApiError
from owl_fast.serving.limits import Limits

LIMITS = dataclasses.replace(Limits(), waiting=6, waiting_tokens=1000)


class Answers:
    """started is set by the test; failed: with what."""

    def __init__(self) -> None:
        self.started = False
        self.failed: Exception | None = None

    def fail(self, error: Exception, /) -> None:
        self.failed = error


def enter(admission: Admission, client: str, positions: int = 0) -> tuple[Ticket, Answers]:
    ticket, answers = admission.enter(client), Answers()
    ticket.attend(answers)
    if positions:
        admission.count(ticket, positions)
    return ticket, answers


def refused(admission: Admission, client: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        admission.enter(client)
    assert (caught.value.status, caught.value.code) == (429, "queue_full")
    assert 1 <= int(caught.value.headers["retry-after"]) <= LIMITS.wait
    return caught.value


def test_so_many_wait_and_no_more() -> None:
    admission = Admission(LIMITS)
    entered = [enter(admission, "one") for _ in range(6)]
    refused(admission, "one")
    assert len(admission.waiting) == 6
    entered[0][1].started = True  # one has begun: its place is free
    enter(admission, "one")
    refused(admission, "one")
    admission.leave(entered[1][0])
    enter(admission, "one")
    refused(admission, "one")


def test_who_holds_most_gives_way() -> None:
    admission = Admission(LIMITS)
    greedy = [enter(admission, "greedy") for _ in range(6)]
    modest = [enter(admission, "modest") for _ in range(3)]
    refused(admission, "modest")  # now they are even
    refused(admission, "greedy")
    failed = [answers.failed is not None for _, answers in greedy]
    assert failed == [False, False, False, True, True, True]  # the newest
    assert all(answers.failed is None for _, answers in modest)
    assert isinstance(greedy[5][1].failed, ApiError)
    assert greedy[5][1].failed.status == 429
    with pytest.raises(ApiError):
        greedy[5][0].check()
    assert len(admission.waiting) == 6
    enter(admission, "third")  # 3 and 3: either gives one
    refused(admission, "modest")


def test_positions_are_counted_too() -> None:
    admission = Admission(LIMITS)
    enter(admission, "one", 600)
    ticket = admission.enter("one")
    with pytest.raises(ApiError) as caught:
        admission.count(ticket, 500)
    assert caught.value.status == 429
    admission.leave(ticket)
    _, newest = enter(admission, "one", 400)
    large = admission.enter("two")
    with pytest.raises(ApiError):  # it would not do if that one gave way
        admission.count(large, 500)
    admission.leave(large)
    assert newest.failed is None
    enter(admission, "two", 400)
    assert newest.failed is not None
    assert sum(ticket.positions for ticket in admission.waiting) == 1000


def test_a_prompt_that_is_alone_is_never_too_long() -> None:
    admission = Admission(LIMITS)
    enter(admission, "one", 5000)


def test_a_place_lost_while_the_prompt_is_read() -> None:
    admission = Admission(LIMITS)
    tickets = [admission.enter("greedy") for _ in range(6)]
    admission.enter("modest")
    with pytest.raises(ApiError):
        tickets[-1].attend(Answers())


def test_who_was_sent_away_finds_room() -> None:
    """The one that is answered and asks again at once leaves the place to it."""
    admission = Admission(dataclasses.replace(LIMITS, waiting=4))
    entered = [enter(admission, f"quick {n}") for n in range(4)]
    refused(admission, "patient")
    admission.leave(entered[0][0])
    refused(admission, "quick 0")
    enter(admission, "patient")
    admission.leave(entered[1][0])
    enter(admission, "quick 0")  # it has been sent away, too


def test_everybody_is_told() -> None:
    admission = Admission(LIMITS)
    entered = [enter(admission, str(n)) for n in range(3)]
    entered[0][1].started = True
    error = ApiError(503, "over")
    admission.end_all(error)
    assert [answers.failed for _, answers in entered] == [error] * 3
    assert admission.waiting == []


def test_places_are_shared_out_evenly() -> None:
    """Whoever comes in whatever order: nobody who is refused has less than somebody else by two."""
    rng = random.Random(0)
    for _ in range(200):
        admission = Admission(dataclasses.replace(LIMITS, waiting=rng.randint(1, 12)))
        for _ in range(40):
            client = rng.choice("aaaabbc")
            held = {c: sum(t.client == c for t in admission.waiting) for c in "abc"}
            try:
                enter(admission, client)
            except ApiError:
                assert held[client] + 1 >= max(held.values())
            if rng.random() < 0.2 and admission.tickets:
                admission.leave(rng.choice(admission.tickets))
