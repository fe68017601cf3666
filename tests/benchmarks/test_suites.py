"""Suites: which cases run with which settings, and that one that fails takes no other with it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import harness, models, peers, run, suites, timing, training
from benchmarks.cases import memory
from owl_fast.errors import OwlError

CPU = torch.device("cpu")
Case = Callable[[argparse.Namespace], list[harness.Row]]


def settings(*given: str) -> list[argparse.Namespace]:
    parser = run._parser()
    return list(run._parts(parser.parse_args([*given, "--device", "cpu"]), parser))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_full_has_every_case_and_only_cases(device: str) -> None:
    cases = {case for case, _ in suites.parts("full", torch.device(device))}
    assert cases == set(run.CASES)


def test_quick_is_small_and_starts_with_what_forks() -> None:
    parts = settings("--suite", "quick")
    assert [part.case for part in parts] == [
        *("kernel-resources", "ops", "load", "vision", "prefill", "decode", "memory", "throughput", "serve"),
        *("train", "contention"),
    ]
    assert {part.model for part in parts[2:]} == {"nano"}
    assert {part.no_compile for part in parts} == {"left out of the quick suite"}


def test_a_suite_runs_the_cases_that_are_named() -> None:
    (part,) = settings("vision", "--suite", "quick")
    assert (part.case, part.model, part.suite) == ("vision", "nano", "quick")
    (alone,) = settings("vision", "--quant", "int8")
    assert (alone.model, alone.quant, alone.suite) == ("7b-random", "int8", None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--suite", "quick", "--model", "tiny"], "--model: a suite has its own"),
        (["--suite", "quick", "--no-compile"], "--no-compile: a suite has its own"),
        ([], "name a CASE or a --suite"),
        (["load", "--model", "no-such-folder"], "no-such-folder: neither one of 7b-random, nano, tiny"),
        (["load", "--json", "no-such-folder/out.json"], "its folder does not exist"),
        (["load", "--json", "tests"], "tests: not a file that can be written"),
        (["load", "--json", "same", "--html", "same"], "same would be overwritten"),
        (["data", "--suite", "quick"], "data: not in the suite quick"),
        (["load", "--compare", "a.json", "b.json"], "--compare runs nothing"),
        (["ops", "--only", "zzz", "--device", "cpu"], "--only zzz: no such operation"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_runs(
    given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        run.main(given)
    assert left.value.code == 2
    assert said in capsys.readouterr().err


def test_a_case_that_fails_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(args: argparse.Namespace) -> list[harness.Row]:
        raise OwlError("no room")

    def works(args: argparse.Namespace) -> list[harness.Row]:
        return [harness.row(args.case, "shape", "owl_fast", "time", "us", [1.0])]

    cases: dict[str, Case] = {"load": fails, "memory": works}
    monkeypatch.setattr(run, "_case", cases.__getitem__)
    out = tmp_path / "out.json"
    assert run.main(["load", "memory", "--suite", "quick", "--device", "cpu", "--json", str(out)]) == 1
    rows = json.loads(out.read_text())["rows"]
    assert [(row["case"], row["median"]) for row in rows] == [("load", None), ("memory", 1.0)]
    assert rows[0]["note"] == "absent: OwlError: no room"
    assert "error: load: OwlError: no room" in capsys.readouterr().err


def test_what_was_measured_before_an_interruption_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def works(args: argparse.Namespace) -> list[harness.Row]:
        return [harness.row(args.case, "shape", "owl_fast", "time", "us", [1.0])]

    def stopped(args: argparse.Namespace) -> list[harness.Row]:
        raise KeyboardInterrupt

    cases: dict[str, Case] = {"load": works, "memory": stopped}
    monkeypatch.setattr(run, "_case", cases.__getitem__)
    out = tmp_path / "out.json"
    assert run.main(["load", "memory", "--suite", "quick", "--device", "cpu", "--json", str(out)]) == 130
    assert [row["case"] for row in json.loads(out.read_text())["rows"]] == ["load"]


def test_a_file_is_there_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "out.html"
    harness.write_whole(kept, "before")
    with monkeypatch.context() as broken:
        broken.setattr("os.replace", _full)
        with pytest.raises(OwlError, match="cannot be written"):
            harness.write_whole(kept, "after")
    assert [path.name for path in tmp_path.iterdir()] == ["out.html"]
    assert kept.read_text() == "before"
    harness.write_whole(kept, "a lone surrogate: \ud800")
    assert kept.read_text() == "a lone surrogate: \\ud800"


def _full(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_case_whose_package_is_missing_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "benchmarks.cases.kernel_resources", raising=False)
    monkeypatch.delitem(sys.modules, "benchmarks.aot", raising=False)
    out = tmp_path / "out.json"
    assert run.main(["kernel-resources", "--suite", "quick", "--device", "cpu", "--json", str(out)]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["note"].startswith("absent: kernel-resources needs triton, which is not installed")


def test_peers_that_are_left_out_say_so() -> None:
    args = argparse.Namespace(peers=["LLAMA", "onnx"])
    contenders = dict.fromkeys(("owl_fast", "owl_fast, int8 cache", "llama.cpp Q4_0", "plain torch"), len)
    assert peers.chosen(contenders, args) == {**contenders, "plain torch": peers.LEFT_OUT}
    assert peers.chosen(contenders, argparse.Namespace(peers=None)) == contenders
    rows = timing.race(
        ("case", "shape", "time"),
        CPU,
        models.Effort(1.0, 1.0),
        {"owl_fast": lambda: (lambda: 1.0, ""), "plain torch": peers.LEFT_OUT},
        0.0,
    )
    assert [row.note for row in rows] == ["", "absent: left out by --peers"]


def test_a_table_is_read_by_suite_then_model_then_the_largest() -> None:
    table = {"7b-random": 7, "nano": 1, "quick": 0}
    asked = [("quick", "nano"), (None, "nano"), ("full", "nano"), (None, "/a/folder")]
    found = [suites.sized(table, argparse.Namespace(suite=suite, model=model)) for suite, model in asked]
    assert found == [0, 1, 1, 7]


def test_a_folder_gives_the_sizes_of_its_model() -> None:
    assert models.config_of(str(models.NANO)) == models.config_of("nano")


def test_memory_of_answers_and_of_training_stands_beside_the_least(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "ANSWERING", ("owl_fast", "transformers batched generate"))
    monkeypatch.setattr(training, "FEW", ("owl_fast", "transformers + peft"))
    out = tmp_path / "out.json"
    command = ["memory", "--device", "cpu", "--model", "tiny", "--peers", "none", "--json", str(out)]
    assert run.main(command) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["contender"] for row in rows if row["note"] == "absent: left out by --peers"] == [
        *("transformers batched generate", "transformers + peft")
    ]
    measured = [row for row in rows if row["median"] is not None]
    assert [row["shape"].rsplit(" ", 2)[-1] for row in measured] == ["C64", "rows", "rows"]
    answer, step, planned = measured
    assert 0 < answer["limit_fraction"] < 1
    assert step["limit_fraction"] > 0
    assert planned["metric"] == "planned memory"


def test_an_answer_takes_what_its_model_and_cache_must_hold() -> None:
    tiny = models.random_model("tiny", CPU)
    held = sum(tensor.nbytes for tensor in (*tiny.parameters(), *tiny.buffers()))
    llama = tiny.config.llama
    cache = 64 * 2 * llama.num_hidden_layers * llama.hidden_size * tiny.dtype.itemsize
    found = memory.answer_alone("tiny", "none", "cpu", 64, "owl_fast")
    assert found["least"] == held + cache
