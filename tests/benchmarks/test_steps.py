"""How contenders that make steps are measured; the clock itself is not tested."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks.steps import Start, Steps, alone, begin, end, in_turns

CPU = torch.device("cpu")


def maker(name: str, order: list[str], count: int = 3) -> Callable[[], Steps]:
    def steps() -> Steps:
        try:
            for step in range(count):
                order.append(f"{name}{step}")
                yield float(step)
        finally:
            order.append(f"{name} ends")

    return steps


def broken() -> Steps:
    raise RuntimeError("not today")
    yield 0.0


def test_steps_are_taken_in_turns_after_the_first_of_each() -> None:
    order: list[str] = []
    taken = in_turns({"owl_fast": maker("a", order), "peer": maker("b", order)})
    assert order[:6] == ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert sorted(order[6:]) == ["a ends", "b ends"]
    assert taken == {"owl_fast": [1.0, 2.0], "peer": [1.0, 2.0]}


def test_alone_means_one_after_the_other() -> None:
    order: list[str] = []
    taken = alone({"owl_fast": maker("a", order), "peer": maker("b", order)}, CPU)
    assert order == ["a0", "a1", "a2", "a ends", "b0", "b1", "b2", "b ends"]
    assert taken == {"owl_fast": [0.0, 1.0, 2.0], "peer": [0.0, 1.0, 2.0]}


@pytest.mark.parametrize("measure", [in_turns, lambda starts: alone(starts, CPU)])
def test_peers_may_fail_or_stay_away(measure: Callable[[dict[str, Start]], dict[str, object]]) -> None:
    starts: dict[str, Start] = {"owl_fast": maker("a", []), "peer": broken, "other": "too slow"}
    taken = measure(starts)
    assert list(taken) == ["owl_fast", "peer", "other"]
    assert taken["peer"] == "RuntimeError: not today"
    assert taken["other"] == "too slow"
    with pytest.raises(RuntimeError, match="not today"):
        measure({"owl_fast": broken})


def test_what_has_begun_can_be_ended() -> None:
    order: list[str] = []
    running, failed = begin({"owl_fast": maker("a", order), "peer": "absent"})
    assert failed == {"peer": "absent"}
    end(running)
    assert order == ["a0", "a ends"]
