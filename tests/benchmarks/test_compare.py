"""What counts as moved between two result documents, and how it is told."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from benchmarks.compare import (
    BETTER,
    GONE,
    MOVED,
    NEW,
    STEADY,
    UNJUDGED,
    WORSE,
    Change,
    compare,
    counts,
    differences,
    table,
)
from benchmarks.harness import Row, absent
from owl_fast.errors import OwlError


def document(*rows: Row, **device: object) -> dict[str, Any]:
    return {
        "device": {"cpu": "EPYC", "cores": 2, **device},
        "versions": {"torch": "2.13"},
        "commit": "0" * 40,
        "date": "2026-11-22T00:00:00+00:00",
        "rows": [asdict(row) for row in rows],
    }


def measured(p20: float, median: float, p80: float, unit: str = "us", contender: str = "owl_fast") -> Row:
    return Row("ops", "norm N1-H8", contender, "time", unit, p20, median, p80, limit_fraction=0.5)


def told(before: dict[str, Any], after: dict[str, Any]) -> str:
    return table(before, after, compare(before, after))


def only(before: Row, after: Row) -> Change:
    (change,) = compare(document(before), document(after))
    return change


@pytest.mark.parametrize(
    ("unit", "verdict"),
    [
        ("us", WORSE),
        ("s", WORSE),
        ("GB", WORSE),
        ("x", WORSE),
        ("tok/s", BETTER),
        ("req/s", BETTER),
        ("times as much", BETTER),
        ("share", BETTER),
        ("requests", MOVED),
        ("registers", MOVED),
    ],
)
def test_more_is_better_or_worse_by_the_unit(unit: str, verdict: str) -> None:
    assert only(measured(9, 10, 11, unit), measured(19, 20, 21, unit)).verdict == verdict
    back = {WORSE: BETTER, BETTER: WORSE, MOVED: MOVED}
    assert only(measured(19, 20, 21, unit), measured(9, 10, 11, unit)).verdict == back[verdict]


def test_intervals_that_touch_overlap() -> None:
    assert only(measured(9, 10, 11), measured(11, 12, 13)).verdict == STEADY
    assert only(measured(11, 12, 13), measured(9, 10, 11)).verdict == STEADY
    assert only(measured(9, 10, 11), measured(11.001, 12, 13)).verdict == WORSE


def test_what_peers_moved_by_is_the_machine_s() -> None:
    """Their code is the same in both runs: ours has moved if it did so by more."""

    def ran(ours: float, slower: float) -> dict[str, Any]:
        peers = [timed(10.0 * slower, f"peer {place}") for place in range(5)]
        return document(timed(ours, "owl_fast"), *peers)

    def timed(took: float, contender: str) -> Row:
        return measured(0.99 * took, took, 1.01 * took, contender=contender)

    def verdict(ours: float, slower: float) -> str:
        changes = compare(ran(10.0, 1.0), ran(ours, slower))
        return next(change.verdict for change in changes if change.row.contender == "owl_fast")

    assert verdict(12.0, 1.0) == WORSE
    assert verdict(12.0, 1.3) == STEADY
    assert verdict(14.0, 1.3) == WORSE


def test_one_interval_within_the_other_has_not_moved() -> None:
    assert only(measured(1, 10, 100), measured(49, 50, 51)).verdict == STEADY


@pytest.mark.parametrize("unit", ["us", "tok/s"])
def test_a_single_measurement_is_never_judged(unit: str) -> None:
    single, repeated = measured(10, 10, 10, unit), measured(99, 100, 101, unit)
    for before, after in ((single, repeated), (repeated, single), (single, measured(1, 1, 1, unit))):
        assert only(before, after).verdict == UNJUDGED


def test_the_largest_move_comes_first_whichever_way() -> None:
    before = [measured(9, 10, 11, contender=f"owl_fast {name}") for name in "abcd"]
    after = [
        measured(p20, median, p80, contender=f"owl_fast {name}")
        for name, (p20, median, p80) in zip(
            "abcd", [(14, 15, 16), (2.4, 2.5, 2.6), (19, 20, 21), (9, 10, 12)], strict=True
        )
    ]
    changes = compare(document(*before), document(*after))
    assert [change.row.contender for change in changes] == [f"owl_fast {name}" for name in "bcad"]
    assert [change.factor for change in changes] == [0.25, 2.0, 1.5, 1.0]
    assert changes[0].size == 4.0


def test_what_is_in_one_alone_is_named_and_counted() -> None:
    gone, new = measured(9, 10, 11, contender="torch"), measured(9, 10, 11, contender="llama.cpp")
    changes = compare(document(gone, measured(9, 10, 11)), document(measured(9, 10, 11), new))
    assert counts(changes) == {STEADY: 1, GONE: 1, NEW: 1}
    lines = [line.split() for line in told(document(gone), document(new)).splitlines()]
    where = "ops", "norm", "N1-H8"
    assert ["before", "only", *where, "torch", "time", "10", "(9", "to", "11)", "us"] in lines
    assert ["after", "only", *where, "llama.cpp", "time", "10", "(9", "to", "11)", "us"] in lines


def test_a_peer_that_is_absent_now_is_gone() -> None:
    where = "ops", "norm N1-H8", "torch", "time", "us"
    peer, missing = measured(9, 10, 11, contender="torch"), absent(*where, "not installed")
    assert only(peer, missing).verdict == GONE
    assert only(missing, peer).verdict == NEW
    assert compare(document(missing), document(missing)) == []


def test_rows_match_by_unit_and_metric_too() -> None:
    mean, spread = measured(1, 1, 1, "nats, mean"), measured(0.1, 1, 2, "nats")
    changes = compare(document(mean, spread), document(spread, mean))
    assert {(change.row.unit, change.verdict) for change in changes} == {
        ("nats, mean", UNJUDGED),
        ("nats", STEADY),
    }


def test_a_row_that_stands_there_twice_is_matched_in_turn() -> None:
    twice = [measured(9, 10, 11), measured(99, 100, 101)]
    assert counts(compare(document(*twice), document(*twice))) == {STEADY: 2}


def test_another_machine_is_told_and_its_limits_are_not_compared() -> None:
    before, after = document(measured(9, 10, 11)), document(measured(9, 10, 11), cpu="Xeon", gpu="H200")
    after["versions"] = {"torch": "2.14", "triton": "3.9"}
    after["rows"][0]["limit_fraction"] = 0.1
    assert differences(before, after) == [
        "device cpu: EPYC before, Xeon after",
        "device gpu: none before, H200 after",
        "version of torch: 2.13 before, 2.14 after",
        "version of triton: none before, 3.9 after",
    ]
    assert told(before, after).startswith("differs: device cpu: EPYC before, Xeon after\n")
    assert counts(compare(before, after)) == {STEADY: 1}
    assert differences(before, before) == []


def test_from_zero_there_is_no_factor_and_it_is_the_largest() -> None:
    change = only(measured(0, 0, 0.1, "GB"), measured(1, 1, 1.1, "GB"))
    assert (change.verdict, change.factor, change.size) == (WORSE, None, float("inf"))


def test_the_table_has_both_intervals() -> None:
    same = measured(1, 2, 3, contender="torch")
    text = told(document(measured(9, 10, 11), same), document(measured(19, 20, 21), same))
    assert text.startswith("1 worse, 1 within the noise\n")
    assert "10 (9 to 11)  20 (19 to 21)  us    2.00" in text
    assert "torch" not in text


def test_what_is_no_document_is_refused() -> None:
    with pytest.raises(OwlError, match="before: no result of"):
        compare({"rows": []}, document())
    assert told(document(), document()) == "no rows"
