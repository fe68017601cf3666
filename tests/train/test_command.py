"""The command from files to what a run leaves: both stages, resuming, what is seen, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from owl_fast import Engine
from owl_fast.checkpoints import weights_sha256
from owl_fast.train.arguments import DEFAULTS, build_parser, with_defaults
from owl_fast.train.command import main
from owl_fast.training.run_lock import RunLock
from tests.golden_data import Golden

MODEL = Golden("micro").checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve conversations, nine of them about pictures, and nine captions."""
    folder = tmp_path_factory.mktemp("data")
    noise = np.random.default_rng(0)
    mixed, captions = [], []
    for number in range(9):
        pixels = noise.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        picture = {"type": "image_url", "image_url": {"url": f"{number}.png"}}
        asked = {"role": "user", "content": [picture, {"type": "text", "text": "a b?"}]}
        mixed.append({"messages": [asked, {"role": "assistant", "content": f"c d {number}"}]})
        captions.append({"image": f"{number}.png", "caption": f"a c {number}"})
    for number in range(3):
        asked = {"role": "user", "content": f"b {number}"}
        mixed.append({"messages": [asked, {"role": "assistant", "content": "d a"}]})
    for name, rows in (("mixed", mixed), ("captions", captions)):
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
    return folder


def run(data: Path, out: Path, *more: str, stage: int = 2, steps: int = 4) -> int:
    name = "mixed" if stage == 2 else "captions"
    return main([
        *("--stage", str(stage), "--model", str(MODEL), "--data", str(data / f"{name}.jsonl")),
        *("--out", str(out), "--max-steps", str(steps), "--batch", "4", "--warmup", "1", "--lr", "1e-3"),
        *("--device", "cpu", "--workers", "0", "--save-every", "2", "--eval-every", "2", "--plain", *more),
    ])  # fmt: skip


def metrics(out: Path) -> list[dict[str, object]]:
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.mark.parametrize("quant", ["none", "int8", "int4"])
def test_stage_2_leaves_an_adapter_that_answers(data: Path, tmp_path: Path, quant: str) -> None:
    assert run(data, tmp_path / "run", "--quant", quant, "--eval-data", str(data / "mixed.jsonl")) == 0
    final = tmp_path / "run" / "final"
    base = json.loads((final / "base.json").read_text())
    assert base["sha256"] == weights_sha256(MODEL)
    assert base["quantization"] == (None if quant == "none" else quant)
    held = {} if quant == "none" else {"quant": quant}
    tuned, plain = (Engine.from_pretrained(path, device="cpu", **held) for path in (final, MODEL))
    asked = [{"role": "user", "content": "a"}]
    answers = [engine.generate(asked, max_tokens=4, ignore_eos=True).logprobs for engine in (tuned, plain)]
    assert answers[0] != answers[1]
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "eval_loss" in line] == [2, 4]


def test_the_updates_load_in_peft(data: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    assert run(data, tmp_path, "--lora-targets", "q_proj", "o_proj", "--lora-rank", "3") == 0
    config = peft.PeftConfig.from_pretrained(str(tmp_path / "final"))
    assert config.r == 3
    assert set(config.target_modules) == {"q_proj", "o_proj"}


def moved(run_folder: Path) -> set[str]:
    """The parts of the model that differ after stage 1."""
    paths = (MODEL, run_folder / "final")
    before, after = (Engine.from_pretrained(path, device="cpu").model.state_dict() for path in paths)
    return {name.split(".")[0] for name, old in before.items() if not torch.equal(old, after[name])}


def test_stage_1_leaves_a_model(data: Path, tmp_path: Path) -> None:
    assert run(data, tmp_path, stage=1) == 0
    assert moved(tmp_path) == {"vision_model", "abstractor", "query_tokens"}


def test_stage_1_with_muon_and_a_tower_that_stands_still(data: Path, tmp_path: Path) -> None:
    assert run(data, tmp_path, "--optimizer", "muon", "--tower-lr-factor", "0", stage=1) == 0
    assert moved(tmp_path) == {"abstractor", "query_tokens"}


def test_whole_pictures_or_crops(data: Path, tmp_path: Path) -> None:
    losses = []
    for name, more in (("crops", ()), ("whole", ("--no-crops",)), ("again", ("--no-crops", "--seed", "5"))):
        assert run(data, tmp_path / name, *more, "--batch", "9", stage=1, steps=1) == 0
        losses.append(metrics(tmp_path / name)[0]["loss"])
    crops, whole, again = losses
    assert again == pytest.approx(whole, rel=1e-6), "all nine pictures, whatever their order"
    assert crops != pytest.approx(whole, rel=1e-6)


def test_a_run_that_goes_on_ends_as_one_that_never_stopped(data: Path, tmp_path: Path) -> None:
    assert run(data, tmp_path / "whole") == 0
    assert run(data, tmp_path / "whole") == 1, "a folder with snapshots needs --resume"
    # The schedule is the whole run's: what the first two updates of four did.
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    parts.mkdir()
    (whole / "checkpoint-2").rename(parts / "checkpoint-2")
    (parts / "metrics.jsonl").write_text((whole / "metrics.jsonl").read_text())
    assert run(data, parts, "--resume", "auto") == 0
    assert metrics(parts) == metrics(whole)
    for file in ("adapter_model.safetensors", "non_lora.safetensors"):
        assert (parts / "final" / file).read_bytes() == (whole / "final" / file).read_bytes()


def test_what_is_seen(data: Path, tmp_path: Path) -> None:
    assert run(data, tmp_path, "--samples", "3") == 0
    text = (tmp_path / "samples.md").read_text(encoding="utf-8")
    assert text.count("# Answers while training") == 1
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## After update 2",
        "## After update 4",
    ]
    assert (tmp_path / "samples" / "1-0.jpg").is_file()
    assert (tmp_path / "plots" / "loss.svg").read_text(encoding="utf-8").startswith("<?xml")
    again = build_parser().parse_args(["--stage", "2", "--model", "m", "--data", "d", "--out", "o"])
    assert with_defaults(again).lr == DEFAULTS[2].lr
    assert f'model = "{MODEL}"' in (tmp_path / "config.toml").read_text(encoding="utf-8")


def test_exit_codes(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text((data / "mixed.jsonl").read_text() + '{"messages": []}\n', encoding="utf-8")
    for number in range(9):
        (tmp_path / f"{number}.png").write_bytes((data / f"{number}.png").read_bytes())
    assert run(data, tmp_path / "a", "--data", str(bad)) == 1
    assert "bad.jsonl:13" in capsys.readouterr().err
    assert run(data, tmp_path / "b", "--data", str(bad), "--skip-bad") == 5
    assert "bad.jsonl:13" in capsys.readouterr().err
    assert run(data, tmp_path / "c", "--data", str(tmp_path / "none.jsonl")) == 1
    (tmp_path / "d").mkdir()
    lock = RunLock(tmp_path / "d")
    assert run(data, tmp_path / "d") == 6
    lock.release()
    with pytest.raises(SystemExit, match="2"):
        main(["--stage", "3"])
