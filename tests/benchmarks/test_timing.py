"""How contenders are raced; the clock itself is not tested."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks import timing
from benchmarks.models import Effort
from benchmarks.timing import Machine, Timer, alternate, machine, race

CPU = torch.device("cpu")
WHERE = "case", "shape", "metric"


@pytest.fixture(autouse=True)
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Machine(copy=[1e9], matmul=[1e12], nothing=[1e-6])
    monkeypatch.setattr(timing, "machine", lambda device: known)


def takes(seconds: float) -> Callable[[], tuple[Timer, str]]:
    return lambda: (lambda: seconds, "")


def test_rows_are_held_against_the_larger_floor() -> None:
    moving = race(WHERE, CPU, Effort(nbytes=1e6, flops=1e6), {"owl_fast": takes(4e-3)}, 0.0)
    (row,) = moving
    assert (row.median, row.limit_fraction, row.rate, row.rate_unit) == (4e3, 0.25, 0.25, "GB/s")
    (row,) = race(WHERE, CPU, Effort(nbytes=1e3, flops=1e9), {"owl_fast": takes(4e-3)}, 0.0)
    assert (row.median, row.limit_fraction, row.rate, row.rate_unit) == (4e3, 0.25, 0.25, "TFLOP/s")


def test_a_peer_may_fail_and_says_why() -> None:
    def missing() -> tuple[Timer, str]:
        raise ModuleNotFoundError("No module named 'peer'")

    contenders = {
        "owl_fast": takes(1.0),
        "peer": missing,
        "other": "too slow",
        "last": takes(2.0),
    }
    rows = race(WHERE, CPU, Effort(1, 1), contenders, 0.0)
    assert [row.contender for row in rows] == list(contenders)
    assert [row.median for row in rows] == [1e6, None, None, 2e6]
    assert rows[1].note == "absent: ModuleNotFoundError: No module named 'peer'"
    assert rows[2].note == "absent: too slow"


def test_our_own_failure_is_nobodys_absence() -> None:
    def broken() -> tuple[Timer, str]:
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        race(WHERE, CPU, Effort(1, 1), {"owl_fast": broken}, 0.0)


def test_contenders_take_turns() -> None:
    order: list[str] = []

    def timer(name: str) -> Timer:
        return lambda: float(order.append(name) or 1.0)

    values = alternate({"a": timer("a"), "b": timer("b")}, 0.0)
    assert order == ["a", "b"] * timing.ROUNDS[0]
    assert len(values["a"]) == len(values["b"]) == timing.ROUNDS[0]


def test_a_machine_has_rates() -> None:
    measured = machine.__wrapped__(CPU)
    assert all(value > 0 for value in (*measured.copy, *measured.matmul, *measured.nothing))
    assert [row.metric for row in measured.rows()] == ["copy", "matmul", "nothing"]
