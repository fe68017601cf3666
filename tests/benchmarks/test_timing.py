"""How contenders are raced; the clock itself is not tested."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks import bandwidth, harness, timing
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
    rates = *measured.copy, *measured.matmul, *measured.nothing, *measured.read, *measured.int8
    assert all(value > 0 for value in rates)
    assert [row.metric for row in measured.rows()] == ["copy", "matmul", "nothing", "read", "int8 matmul"]


def test_floors_know_what_a_cpu_does_better() -> None:
    known = Machine(copy=[1e9], matmul=[1e12], nothing=[1e-6], read=[4e9], int8=[2e12])
    assert known.floor(Effort(nbytes=4e6, flops=1e6)) == 1e-3
    assert known.floor(Effort(nbytes=1e3, flops=4e9)) == 4e-3
    assert known.floor(Effort(nbytes=1e3, flops=4e9, int8=True)) == 2e-3


def test_reading_without_a_compiler_is_slower_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "NBYTES", 1 << 16)
    monkeypatch.setenv("CXX", "no-such-compiler")
    timer, nbytes, note = bandwidth.reader()
    assert timer() > 0
    assert nbytes == 1 << 16
    assert "read.cpp is not compiled" in note


def test_peers_are_set_against_ours() -> None:
    rows = [
        harness.row("case", "shape", name, metric, unit, [value])
        for metric, unit, values in (("time", "us", (2.0, 3.0)), ("throughput", "tok/s", (20.0, 40.0)))
        for name, value in zip(("owl_fast", "peer"), values, strict=True)
    ]
    rows.append(harness.absent("case", "shape", "other", "time", "us", "not installed"))
    rows.append(harness.row("case", "another shape", "peer", "time", "us", [1.0]))
    found = harness.beside_ours(rows)
    assert [row.ours for row in found] == [None, 1.5, None, 0.5, None, None]
    assert "1.50 x" in harness.table(found)
