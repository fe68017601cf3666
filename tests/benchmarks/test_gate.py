"""Counts agree with the gate's table, and what gets worse is found. Ratios need a clock: `make gate`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import models
from benchmarks.gate import counts, ratios, report
from benchmarks.gate.counting import python_calls
from benchmarks.gate.table import COUNTS, LEAST, WITHIN
from owl_fast import ops

ROOT = Path(__file__).resolve().parents[2]


def present(name: str) -> counts.Work:
    work = counts.WORK[name]
    if (reason := counts.ABSENT[work.needs]()) is not None:
        pytest.skip(reason)
    return work


def failing(name: str) -> list[report.Line]:
    return [line for line in report.of_work(name, present(name)) if line.fails]


@pytest.mark.parametrize("name", counts.WORK)
def test_counts_are_those_of_the_table(name: str) -> None:
    lines = failing(name)
    assert not lines, f"{report.table(lines)}\n{lines[0].advice}"


def test_the_table_names_what_is_measured_and_nothing_else() -> None:
    assert COUNTS.keys() == counts.WORK.keys()
    assert LEAST.keys() == ratios.RATIOS.keys()
    assert {what for wanted in COUNTS.values() for what in wanted} == WITHIN.keys()


@pytest.mark.parametrize(
    ("name", "scheme", "rows"),
    [("7B decode step, bf16, 1 row", None, 1), ("7B decode step, int8, 1 row", "int8", 1)],
)
def test_a_decode_step_on_a_gpu_reads_every_weight_once(name: str, scheme: str | None, rows: int) -> None:
    model = counts.owl_7b(scheme)
    assert COUNTS[name]["weight bytes"] == models.language_effort(model, rows).nbytes


@pytest.mark.parametrize(
    ("name", "scheme", "dtype", "rows"),
    [
        ("nano decode step, bf16, 1 row", None, torch.bfloat16, 1),
        ("nano decode step, int8, 1 row", "int8", torch.float32, 1),
        ("nano decode step, int4, 8 rows", "int4", torch.float32, 8),
    ],
)
def test_a_decode_step_on_a_cpu_reads_every_weight_once(
    name: str, scheme: str | None, dtype: torch.dtype, rows: int, cpu_library: object
) -> None:
    model = counts.nano(dtype, scheme)
    assert COUNTS[name]["weight bytes"] == models.language_effort(model, rows, rows).nbytes


def twice(run: Callable[..., Any]) -> Callable[..., Any]:
    def both(*args: Any, **kwargs: Any) -> Any:
        run(*args, **kwargs)
        return run(*args, **kwargs)

    return both


def moved(name: str) -> dict[str, tuple[str, str]]:
    return {line.what.removeprefix(f"{name}: "): (line.found, line.verdict) for line in failing(name)}


def test_a_doubled_launch_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "7B decode step, bf16, 1 row"
    present(name)
    monkeypatch.setattr(ops, "linear_few_rows", twice(ops.linear_few_rows))
    launches = COUNTS[name]["kernel launches"] + 129
    found = moved(name)
    assert found["kernel launches"] == (str(launches), "more than before")
    assert found["weight bytes"][1] == "more than before"
    (advice,) = {line.advice for line in failing(name)}
    assert f'    "{name}": {{\n        "kernel launches": {launches},\n' in advice


def test_a_doubled_call_fails(monkeypatch: pytest.MonkeyPatch, cpu_library: object) -> None:
    name = "nano decode step, int8, 1 row"
    monkeypatch.setattr(ops, "decode_attention_cpu", twice(ops.decode_attention_cpu))
    assert moved(name)["native calls"] == ("43", "more than before")


def test_an_operator_more_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none computes, and among hundreds."""
    name = "7B decode step, int4, 1 row"
    present(name)
    rms_norm = ops.rms_norm_triton
    monkeypatch.setattr(ops, "rms_norm_triton", lambda *args: rms_norm(*args) + 0)
    assert moved(name)["torch operators"] == ("1", "more than before")


def test_what_gets_better_fails_too() -> None:
    wanted = {"kernel launches": 163, "Python calls": 1000, "bytes at a time": 100}
    name = "a step"

    def verdicts(**found: int) -> list[str]:
        by_name = {what.replace("_", " "): value for what, value in found.items()}
        return [line.verdict for line in report.compared(name, by_name, wanted)]

    assert verdicts(kernel_launches=163, Python_calls=1150, bytes_at_a_time=94) == ["ok"] * 3
    assert verdicts(kernel_launches=162, Python_calls=1151, bytes_at_a_time=93) == [
        *("less than before", "more than before", "less than before")
    ]
    assert verdicts(kernel_launches=163, Python_calls=1000) == ["ok", "ok", "not counted any more"]
    assert [line.verdict for line in report.compared(name, wanted, {})] == ["not in the table"] * 3
    assert [line.verdict for line in report.missing({name: {}}, {})] == ["not counted any more"]


def test_pasted_lines_are_the_tables() -> None:
    source = (ROOT / report.TABLE).read_text(encoding="utf-8")
    assert all(report.pasted(name, wanted) in source for name, wanted in COUNTS.items())


@pytest.mark.parametrize(
    ("values", "verdict"),
    [([2.0] * 5, "ok"), ([0.4, 0.5, 0.9], "ok"), ([0.1, 0.49, 9.0], "slower than it must be")],
)
def test_the_median_of_a_ratio_is_held(values: list[float], verdict: str) -> None:
    assert report.held("work", values, 0.5).verdict == verdict


@pytest.mark.parametrize(
    ("found", "ratio", "code"), [(163, 2.0, 0), (326, 2.0, 1), (162, 2.0, 1), (163, 0.2, 1)]
)
def test_the_exit_code_says_whether_something_moved(
    found: int,
    ratio: float,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(counts, "WORK", {"a step": counts.Work("torch", lambda: {"kernel launches": found})})
    monkeypatch.setattr(counts, "ABSENT", {"torch": lambda: None, "libowl_cpu": lambda: None})
    monkeypatch.setattr(report, "COUNTS", {"a step": {"kernel launches": 163}})
    monkeypatch.setattr(ratios, "RATIOS", {"a race": None})
    monkeypatch.setattr(ratios, "measured", lambda name: [ratio] * 5)
    monkeypatch.setattr(report, "LEAST", {"a race": 0.5})
    assert report.run() == code
    printed = capsys.readouterr()
    assert f"gate: {2 - code} of 2 hold" in printed.out
    assert (f'"kernel launches": {found},' in printed.err) == (found != 163)


def test_what_cannot_be_checked_does_not_hold(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = "libowl_cpu.so is not built"
    monkeypatch.setattr(counts, "ABSENT", dict.fromkeys(counts.ABSENT, lambda: reason))
    assert report.run() == 1
    lines = capsys.readouterr().out.splitlines()[1:-1]
    assert len(lines) == len(counts.WORK) + len(ratios.RATIOS)
    assert all(line.endswith(f"absent: {reason}") for line in lines)


def test_both_attentions_attend_to_the_same(cpu_library: object) -> None:
    ours, theirs = ratios.attention()
    torch.testing.assert_close(ours(), theirs()[:, :, 0], rtol=1e-4, atol=1e-5)


def test_help_says_what_to_do() -> None:
    command = [sys.executable, "-m", "benchmarks.gate", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert report.TABLE in done.stdout


def test_python_calls_are_counted() -> None:
    assert python_calls(lambda: None) == 1
    assert python_calls(lambda: [abs(i) for i in map(int, "123")]) in (4, 5)  # 3.12 inlines the list
