"""The command from files to what a run leaves: both stages, resuming, what is seen, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from owl_fast import Engine
from owl_fast.checkpoints import weights_sha256
from owl_fast.train.arguments import read_arguments
from owl_fast.train.command import main
from owl_fast.training.run_lock import RunLock
from tests.train.runs import MODEL, run, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def metrics(out: Path) -> list[dict[str, object]]:
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.mark.parametrize("quant", ["none", "int8", "int4"])
def test_stage_2_leaves_an_adapter_that_answers(data: Path, tmp_path: Path, quant: str) -> None:
    evaluated = ("--eval-data", str(data / "mixed.jsonl"), "--eval-every", "2")
    assert run(data, tmp_path / "run", "--quant", quant, *evaluated) == 0
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
    assert run(data, tmp_path, "--samples", "3", "--eval-every", "2") == 0
    text = (tmp_path / "samples.md").read_text(encoding="utf-8")
    assert text.count("# Answers while training") == 1
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## After update 2",
        "## After update 4",
    ]
    assert (tmp_path / "samples" / "1-0.jpg").is_file()
    assert (tmp_path / "plots" / "loss.svg").read_text(encoding="utf-8").startswith("<?xml")
    again = read_arguments(["--config", str(tmp_path / "config.toml")])
    assert (again.model, again.batch, again.lr, again.resume) == (str(MODEL), 4, 1e-3, "never")


def test_event_files(data: Path, tmp_path: Path) -> None:
    """TensorBoard reads what metrics.jsonl holds."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert run(data, tmp_path, "--tensorboard", "--eval-every", "2", "--samples", "1") == 0
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    lines = metrics(tmp_path)
    read = [(event.step, event.value) for event in events.Scalars("loss")]
    assert read == [(line["step"], pytest.approx(line["loss"])) for line in lines]


def test_what_was_not_said() -> None:
    """The paper's values; stage 1 counts tokens."""
    said = ["--model", "m", "--data", "d", "--out", "o"]
    first, second = (read_arguments(["--stage", stage, *said]) for stage in "12")
    assert (first.lr, first.warmup, first.max_steps, first.weight_decay) == (1e-4, 2000, 50_000, 0.1)
    assert (second.lr, second.warmup, second.max_steps) == (2e-5, 50, 2000)
    assert (first.batch, first.batch_tokens) == (None, 2_100_000)
    assert (second.batch, second.batch_tokens) == (256, None)


def test_another_course_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was worked out when the run began stays; what was said must be the same."""
    assert run(data, tmp_path) == 0
    begun = read_arguments(["--config", str(tmp_path / "config.toml")])
    assert begun.micro_batch == 4
    for flag, value in (("--lr", "0.002"), ("--lora-rank", "4"), ("--micro-batch", "2"), ("--quant", "int8")):
        assert run(data, tmp_path, "--resume", "auto", flag, value) == 1
        said = capsys.readouterr().err
        assert f"{flag} is {value}, and the run began with" in said
        assert f"--config {tmp_path / 'config.toml'} --resume auto" in said
    assert run(data, tmp_path, "--resume", "auto", "--keep", "3") == 0
    assert main(["--config", str(tmp_path / "config.toml"), "--resume", "auto"]) == 0


def test_the_plan_comes_before_anything_is_written(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, tmp_path / "run", "--plan", "--memory", "1") == 0
    said = capsys.readouterr().out
    assert "update: 4 samples, about" in said
    assert "largest micro-batch that fits into 1.00 GB: 4 samples" in said
    assert not (tmp_path / "run").exists()
    assert run(data, tmp_path / "run", "--memory", "1e-6") == 1
    assert "give a smaller micro-batch" in capsys.readouterr().err


def test_an_update_of_tokens(data: Path, tmp_path: Path) -> None:
    """As many samples as take so many tokens on average."""
    captions = ["--stage", "1", "--model", str(MODEL), "--data", str(data / "captions.jsonl")]
    more = ["--warmup", "1", "--max-steps", "3", "--device", "cpu", "--workers", "0", "--plain"]
    assert main([*captions, "--out", str(tmp_path), "--batch-tokens", "100", *more]) == 0
    assert all(80 <= line["rows"] <= 120 for line in metrics(tmp_path))


def test_features_on_disk_change_nothing(data: Path, tmp_path: Path) -> None:
    """Neither when they are made nor when they are there."""
    assert run(data, tmp_path / "plain", "--micro-batch", "2") == 0
    cache = ("--micro-batch", "2", "--feature-cache", str(tmp_path / "features"))
    for name in ("first", "again"):
        assert run(data, tmp_path / name, *cache) == 0
        assert len([path for path in (tmp_path / "features").rglob("*") if path.is_file()]) == 9
        for file in ("adapter_model.safetensors", "non_lora.safetensors"):
            assert (tmp_path / name / "final" / file).read_bytes() == (
                tmp_path / "plain" / "final" / file
            ).read_bytes()
    assert run(data, tmp_path / "one", *cache, stage=1) == 1


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
