"""The report: installation, model folder, weight file."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from owl_fast import Engine, doctor, machine, native, ops
from owl_fast.checkpoints import open_source, read_tensors, write_tensors
from owl_fast.config import OwlConfig
from owl_fast.doctor.model import Heads, candidates, memory_rows, taken_row
from owl_fast.doctor.software import package_rows
from tests.doctor.test_pairs import Seer
from tests.golden_data import GOLDEN, FirstRelease, Golden

TINY = Golden("tiny").checkpoint


def test_what_is_installed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "owl_fast.doctor.software._version", lambda name: None if name in ("rich", "matplotlib") else "9"
    )
    rows, complete = package_rows()
    told = dict(rows)
    assert not complete
    assert told["rich"] == "MISSING: pip install rich"
    missing = "not installed: plots of a training run; pip install '.[train]' in the checkout"
    assert told["matplotlib"] == missing
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
    monkeypatch.setattr(machine, "free_memory", lambda device: 20 << 30)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(ops, "backend", lambda device: "torch")
    rows, context = dict(memory_rows(OwlConfig.mplug_owl_7b())), "for 2048 positions"
    assert rows == {
        "weights": "7123.1 M",
        "in fp32": f"26.54 GiB + 2.00 GiB {context} + 472.0 MiB to work in; fits on nothing here",
        "in bf16 or fp16": f"13.27 GiB + 1.00 GiB {context} + 236.0 MiB to work in; fits on cpu",
        "in int8": f"7.12 GiB + 1.00 GiB {context} + 306.0 MiB to work in; fits on cpu",
        "in int4": f"4.42 GiB + 1.00 GiB {context} + 306.0 MiB to work in; fits on cpu",
    }


@pytest.mark.parametrize(("free", "said"), [(20, "bf16"), (10, "int8"), (7, "int4"), (3, "max_context=")])
def test_what_would_be_taken(free: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda device: free << 30)
    config = OwlConfig.mplug_owl_7b()
    if free > 3:
        assert taken_row(config, "cpu", "auto", "auto", None)[1].startswith(f"{said}, ")
    else:
        assert "nothing fits" in taken_row(config, "cpu", "auto", "auto", None)[1]
    assert taken_row(config, "cpu", "auto", "int4", "int8")[1].startswith("int4, vision int8, 5.")


@pytest.fixture(scope="module")
def weight_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as one file, whose widths can be divided into 8 and into 16 heads."""
    path = tmp_path_factory.mktemp("one") / "model.pth"
    write_tensors(path, {name: t for file in TINY.glob("*.bin") for name, t in read_tensors(file).items()})
    return path


def test_the_heads_that_are_tried(weight_file: Path, tmp_path: Path) -> None:
    def tried(path: Path, **told: Any) -> list[Heads]:
        return candidates(open_source(path, **told))

    assert tried(weight_file) == [Heads(8, 8), Heads(16, 16)]
    assert tried(weight_file, vision_heads=12) == [Heads(12, 8), Heads(12, 16)]
    assert tried(weight_file, vision_heads=12, abstractor_heads=6) == [Heads(12, 6)]
    (tmp_path / "c.json").write_text('{"vision_config": {"num_attention_heads": 4}}')
    assert tried(weight_file, config=tmp_path / "c.json") == [Heads(4, 8), Heads(4, 16)]
    assert tried(TINY) == [Heads(4, 3)]
    assert tried(FirstRelease().checkpoint) == [Heads(8, 8)]  # 24 features make no 16 heads
    assert [str(Heads(8, 8)), str(Heads(8, 16))] == ["8 heads", "8 vision heads, 16 abstractor heads"]


Loads = list[dict[str, Any]]


@pytest.fixture
def loads(weight_file: Path, monkeypatch: pytest.MonkeyPatch) -> Loads:
    """The options of every load; the model sees with 16 heads and only then."""
    seen: Loads = []

    def load(given: str, **options: Any) -> Seer:
        assert given == str(weight_file)
        seen.append(options)
        return Seer(9.0 if options["vision_heads"] == 16 else 0.1)

    monkeypatch.setattr(Engine, "from_pretrained", load)
    return seen


def test_a_weight_file_is_tried_with_8_and_16_heads(
    weight_file: Path, loads: Loads, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.main([str(weight_file), "--tokenizer", "t.model", "--dtype", "bf16"]) == 0
    assert [(load["vision_heads"], load["abstractor_heads"]) for load in loads] == [(8, 8), (16, 16)]
    assert {(load["tokenizer"], load["dtype"], load["max_batch"]) for load in loads} == {
        ("t.model", "bf16", 1)
    }
    said = capsys.readouterr().out
    assert "as in the Hugging Face release" in said
    assert "8 heads   0 of 16 pictures found" in said
    assert "16 heads  16 of 16 pictures found by their captions, 100.0% sure" in said
    assert said.endswith("Likelier: 16 heads.\n")
    assert said.count("language model") == 1


def test_what_is_known_already_is_not_tried(
    weight_file: Path, loads: Loads, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.main([str(weight_file), "--vision-heads", "8", "--abstractor-heads", "4"]) == 0
    assert [(load["vision_heads"], load["abstractor_heads"]) for load in loads] == [(8, 4)]
    said = capsys.readouterr().out
    assert "Likelier" not in said
    assert "It hardly sees" in said


def test_a_file_of_the_first_release_is_loaded_and_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    """Made of random numbers, it sees nothing; that every caption was scored shows that it answers."""
    release = FirstRelease()
    tokenizer = str(release.folder / "tokenizer.model")
    assert doctor.main([str(release.checkpoint), "--tokenizer", tokenizer, "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert "as in the first release" in out
    assert "2 layers, width 24, 8 heads; pictures of 40 x 40" in out
    assert re.search(r"8 heads  \d of 16 pictures found by their captions, \d+\.\d% sure", out)
    assert out.endswith("it does not know such pictures.\n")
    assert "(8 heads) ..." in err


@pytest.mark.parametrize(("argument", "message"), [("no/such", "no such file"), (str(GOLDEN), "no weights")])
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
