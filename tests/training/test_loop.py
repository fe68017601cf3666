"""The loop: one loss over all micro-batches, bit-equal resumption, non-finite updates, refusals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from owl_fast.errors import CheckpointError, DataError, UnsupportedError
from owl_fast.models.owl import Owl
from owl_fast.training import (
    FULL_LLAMA,
    STAGE1,
    EncodedSample,
    OptimizerSettings,
    Sample,
    Source,
    Stage,
    Trainer,
    TrainSettings,
    stage2,
)
from owl_fast.training.packing import TrainingBatch
from tests.training.owls import made_up, small_owl, weights, without_times

TEXT = Source("text", made_up, weight=1.0, size=11)
PICTURES = Source("pictures", lambda index: made_up(index, pictures=1 + index % 2), weight=2.0)
SETTINGS = TrainSettings(
    steps=10,
    batch=8,
    micro_batch=3,
    optimizer=OptimizerSettings(lr=1e-2, warmup=2),
    save_every=3,
    progress=False,
)


def change(**changes: Any) -> TrainSettings:
    return dataclasses.replace(SETTINGS, **changes)


def trainer(
    out_dir: Path, settings: TrainSettings = SETTINGS, stage: Stage | None = None, **more: Any
) -> Trainer:
    more.setdefault("sources", [TEXT, PICTURES])
    model = more.pop("model", None) or small_owl()
    return Trainer(model, stage or stage2(), more.pop("sources"), settings, out_dir, **more)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return without_times([json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()])


def assert_same(one: Owl, two: Owl) -> None:
    theirs = weights(two)
    different = [name for name, value in weights(one).items() if not torch.equal(value, theirs[name])]
    assert different == []


def first_update(run: Trainer) -> list[TrainingBatch]:
    return [run.reader(number) for number in run.reader.of_update(0)]


def test_it_learns(tmp_path: Path) -> None:
    sources = [Source.of("few", [made_up(i, pictures=1) for i in range(4)])]
    settings = change(steps=40, batch=4, save_every=0)
    run = trainer(tmp_path, settings, FULL_LLAMA, sources=sources)
    run.run()
    losses = [line["loss"] for line in metrics(tmp_path)]
    assert losses[-1] < 0.1 * losses[0]
    assert list(tmp_path.glob("checkpoint-*")) == []


@pytest.mark.parametrize("stage", [STAGE1, stage2(), FULL_LLAMA], ids=lambda stage: stage.name)
def test_micro_batches_do_not_change_the_update(stage: Stage, tmp_path: Path) -> None:
    """1 x 8, 8 x 1 and an uneven cut give one gradient; labelled counts differ between samples."""
    found = []
    for micro in (8, 1, 3):
        model = small_owl()
        run = trainer(
            tmp_path / str(micro), change(micro_batch=micro), stage, model=model, sources=[PICTURES]
        )
        batches = first_update(run)
        assert [len(batch.records) for batch in batches] == {8: [8], 1: [1] * 8, 3: [3, 3, 2]}[micro]
        model.eval()  # dropout draws differently for each cut
        loss, norm, *_ = run.accumulate(batches)
        found.append((loss, norm, {name: p.grad for name, p in run.parameters.items()}))
    for loss, norm, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-6)
        assert norm == pytest.approx(found[0][1], rel=1e-6)
        for name, gradient in gradients.items():
            wanted = found[0][2][name]
            assert gradient is not None
            assert wanted is not None
            assert (gradient - wanted).abs().max().item() <= 1e-6, name


def test_labelled_counts_weigh_the_micro_batches(tmp_path: Path) -> None:
    """The mean over tokens, not the mean of the micro-batches' means."""
    samples = [made_up(0), dataclasses.replace(made_up(1), labels=made_up(1).token_ids)]
    sources = [Source.of("two", samples)]
    runs = {m: trainer(tmp_path / str(m), change(batch=2, micro_batch=m), sources=sources) for m in (1, 2)}
    losses = {m: run.accumulate(first_update(run)).loss for m, run in runs.items() if run.model.eval()}
    assert losses[1] == pytest.approx(losses[2], abs=1e-6)


def test_a_half_written_snapshot_is_passed_over(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole")
    whole.run()
    broken = tmp_path / "broken"
    trainer(broken).run(until=8)  # leaves checkpoint-3, checkpoint-6 and metrics up to 8
    file = broken / "checkpoint-6/optimizer.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with (broken / "metrics.jsonl").open("a") as log:
        log.write('{"step": 9, "lo')
    resumed = trainer(broken)
    assert resumed.step == 3
    resumed.run()
    assert_same(resumed.model, whole.model)
    assert metrics(broken) == metrics(tmp_path / "whole")


def test_snapshots_keep_the_last_ones(tmp_path: Path) -> None:
    trainer(tmp_path, change(keep=2)).run()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-9"]


def test_running_on_is_refused_when_the_run_is_another(tmp_path: Path) -> None:
    trainer(tmp_path).run(until=3)
    with pytest.raises(UnsupportedError, match="checkpoint-3 is there already"):
        trainer(tmp_path, resume=False)
    for settings, key in ((change(seed=1), "seed"), (change(batch=4), "batch")):
        with pytest.raises(CheckpointError, match=f"made with {key}"):
            trainer(tmp_path, settings)
    with pytest.raises(CheckpointError, match=r"made with sources .*unless data_changed_ok is set"):
        trainer(tmp_path, sources=[TEXT])
    run = trainer(tmp_path, sources=[TEXT], data_changed_ok=True)
    assert run.step == 3
    run.close()
    with pytest.raises(CheckpointError, match="another model or stage"):
        trainer(tmp_path, stage=STAGE1)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unusable_record_is_named(workers: int, tmp_path: Path) -> None:
    def get(index: int) -> EncodedSample:
        sample = made_up(index)
        return dataclasses.replace(sample, labels=[-100] * len(sample.labels)) if index == 20 else sample

    with pytest.raises(DataError, match="made-up 20: no labelled token"):
        trainer(tmp_path, change(workers=workers), FULL_LLAMA, sources=[Source("text", get)]).run()
    raw = Source("raw", lambda index: Sample([]))
    run = trainer(tmp_path / "raw", change(workers=workers), FULL_LLAMA, sources=[raw])
    with pytest.raises(DataError, match="source raw, record 0: a Sample came and the run has no encoder"):
        run.run()


def test_stage_1_needs_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="stage1 trains vision_model"):
        trainer(tmp_path, stage=STAGE1, sources=[TEXT]).run()


def test_clipping_limits_the_gradient(tmp_path: Path) -> None:
    run = trainer(tmp_path, change(optimizer=OptimizerSettings(clip=0.01)))
    norm = run.accumulate(first_update(run)).norm
    assert norm > 0.01
    run._clip(norm)
    clipped = torch.cat([p.grad.flatten() for p in run.parameters.values() if p.grad is not None]).norm()
    assert clipped.item() == pytest.approx(0.01, rel=1e-3)


def test_dropout_is_on_in_training_only(tmp_path: Path) -> None:
    states: list[bool] = []

    def evaluate(model: Owl, step: int) -> dict[str, Any]:
        states.append(model.training or torch.is_grad_enabled())
        return {"accuracy": step / 10}

    run = trainer(tmp_path, change(eval_every=4), evaluate=evaluate)
    run.model.register_forward_hook(lambda model, _a, _o: states.append(not model.training))
    run.run()
    assert not any(states)
    assert [line["step"] for line in metrics(tmp_path) if "accuracy" in line] == [4, 8, 10]
    assert not run.model.training


def test_the_callers_random_numbers_go_on(tmp_path: Path) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    trainer(tmp_path, change(steps=2)).run()
    assert torch.equal(torch.rand(3), wanted)


def test_bfloat16_base_and_autocast(tmp_path: Path) -> None:
    for name, model, precision in (
        ("half", small_owl(dtype=torch.bfloat16), "fp32"),
        ("autocast", small_owl(), "bf16"),
    ):
        run = trainer(tmp_path / name, change(precision=precision, steps=3), model=model)
        run.run()
        assert all(line["loss"] is not None for line in metrics(tmp_path / name))
        assert {p.dtype for p in run.parameters.values()} == {torch.float32}
    with pytest.raises(UnsupportedError, match="float16"):
        trainer(tmp_path / "fp16", model=small_owl(dtype=torch.float16))
