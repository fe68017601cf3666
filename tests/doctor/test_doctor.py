"""The report: installation, model folder, weight file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from owl_fast import Engine, doctor, machine, native
from owl_fast.config import OwlConfig
from owl_fast.doctor.model import Heads, candidates, memory_rows
from owl_fast.doctor.software import package_rows
from owl_fast.errors import CheckpointError
from tests.doctor.test_pairs import Seer
from tests.golden_data import GOLDEN, Golden

TINY = Golden("tiny").checkpoint


def test_what_is_installed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "owl_fast.doctor.software._version", lambda name: None if name in ("rich", "matplotlib") else "9"
    )
    rows, complete = package_rows()
    told = dict(rows)
    assert not complete
    assert told["rich"] == "MISSING: pip install rich"
    assert told["matplotlib"] == "not installed: plots of a training run; pip install 'owl-fast[train]'"
    assert doctor.main([]) == 1
    said = capsys.readouterr().out
    assert f"{machine.cpu_count()} core(s)" in said
    assert torch.cuda.is_available() or "GPU        none" in said


def test_all_that_is_needed_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    assert "MISSING" not in capsys.readouterr().out


@pytest.mark.parametrize("path", [None, Path("/x/libowl_cpu.so")])
def test_the_library_is_named_or_why_there_is_none(
    path: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = native.Native(None, path, None if path else "libowl_cpu.so is not built")
    monkeypatch.setattr(native, "status", lambda: found)
    said = dict(package_rows()[0])["libowl_cpu"]
    assert said == "/x/libowl_cpu.so" if path else "make native" in said


def test_the_machine() -> None:
    assert machine.cpu_name()
    assert set(machine.cpu_features()) <= set(machine.FEATURES)
    assert machine.device_memory(torch.device("cpu")) > 1 << 28
    assert machine.device_name(torch.device("cpu")) == "cpu"


# --- models ---


def test_a_folder_is_described_without_loading_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Engine, "from_pretrained", None)
    assert doctor.main([str(TINY)]) == 0
    said = capsys.readouterr().out
    assert "3 layers, width 48, 4 heads; pictures of 56 x 56, patches of 14" in said
    assert "3 of weights, " in said
    assert "float32" in said


def test_the_memory_of_the_7b_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "device_memory", lambda device: 20 << 30)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    rows = dict(memory_rows(OwlConfig.mplug_owl_7b()))
    assert rows == {
        "weights": "7123.1 M",
        "in fp32": "26.54 GiB + 2.00 GiB for 2048 positions; fits on nothing here",
        "in bf16 or fp16": "13.27 GiB + 1.00 GiB for 2048 positions; fits on cpu",
    }


def test_the_heads_that_are_tried() -> None:
    assert candidates(None, None, configured=False) == [Heads(8, 8), Heads(16, 16)]
    assert candidates(12, None, configured=False) == [Heads(12, 8), Heads(12, 16)]
    assert candidates(12, 6, configured=False) == [Heads(12, 6)]
    assert candidates(None, None, configured=True) == [Heads(None, None)]
    names = [str(Heads(8, 8)), str(Heads(8, 16)), str(Heads(None, None))]
    assert names == ["8 heads", "8 vision heads, 16 abstractor heads", "heads of its config"]


class FakeEngine(Seer):
    config = OwlConfig.from_file(TINY / "config.json")


@pytest.fixture
def weight_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[dict[str, Any]]]:
    """A .pth that is read rightly with 16 heads and only then; the options of every load."""
    path, loads = tmp_path / "model.pth", []
    path.touch()

    def load(given: Path, **options: Any) -> FakeEngine:
        assert given == path
        loads.append(options)
        if options.get("vision_heads") == 7:
            raise CheckpointError("hidden_size 48 is not a multiple of 7")
        return FakeEngine(9.0 if options.get("vision_heads", 16) == 16 else 0.1)

    monkeypatch.setattr(Engine, "from_pretrained", load)
    return str(path), loads


def test_a_weight_file_is_tried_with_8_and_16_heads(
    weight_file: tuple[str, list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, loads = weight_file
    assert doctor.main([path, "--tokenizer", "t.model", "--dtype", "bf16"]) == 0
    assert [(load["vision_heads"], load["abstractor_heads"]) for load in loads] == [(8, 8), (16, 16)]
    assert {(load["tokenizer"], load["dtype"], load["max_batch"]) for load in loads} == {
        ("t.model", "bf16", 1)
    }
    said = capsys.readouterr().out
    assert "8 heads   0 of 16 pictures found" in said
    assert "16 heads  16 of 16 pictures found by their captions, 100.0% sure" in said
    assert said.endswith("Likelier: 16 heads.\n")
    assert said.count("language model") == 1


def test_what_is_known_already_is_not_tried(
    weight_file: tuple[str, list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    path, loads = weight_file
    assert doctor.main([path, "--config", "c.json"]) == 0
    assert doctor.main([path, "--vision-heads", "8", "--abstractor-heads", "4"]) == 0
    assert loads[0]["config"] == "c.json"
    assert "vision_heads" not in loads[0]
    said = capsys.readouterr().out
    assert "Likelier" not in said
    assert "It hardly sees" in said


def test_heads_that_cannot_be_are_left_out(
    weight_file: tuple[str, list[dict[str, Any]]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, _ = weight_file
    monkeypatch.setattr("owl_fast.doctor.model.HEADS", (7, 16))
    assert doctor.main([path]) == 0
    out, err = capsys.readouterr()
    assert "not with 7 heads: hidden_size 48" in err
    assert "16 heads  16 of 16" in out
    assert "Likelier" not in out
    assert doctor.main([path, "--vision-heads", "7"]) == 1
    assert "error: hidden_size 48" in capsys.readouterr().err


@pytest.mark.parametrize(("argument", "message"), [("no/such", "no such file"), (str(GOLDEN), "config.json")])
def test_what_is_no_model(argument: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([argument]) == 1
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert message in err


def test_the_command_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "owl_fast.doctor", "--help"],
        cwd=GOLDEN.parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "instruction_tuned.pth --tokenizer" in done.stdout
