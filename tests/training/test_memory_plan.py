"""The plan beside the memory that training takes, and what it chooses for a budget."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.live_memory import LiveMemory
from owl_fast.config import AbstractorConfig, LlamaConfig, OwlConfig, Quantization, VisionConfig
from owl_fast.errors import UnsupportedError
from owl_fast.lora import LoraConfig
from owl_fast.models.layers import init_weights
from owl_fast.models.owl import Owl
from owl_fast.models.recompute import LEVELS, Layer, Level
from owl_fast.quantization.whole import quantize_
from owl_fast.training import STAGE1, EncodedSample, OptimizerSettings, Source, Trainer, TrainSettings, stage2
from owl_fast.training.memory_plan import MicroBatch, Planner, Setup, apply
from owl_fast.training.optimizers import OPTIMIZERS
from owl_fast.training.packing import IGNORED
from owl_fast.training.stages import Stage

CPU = torch.device("cpu")
CONFIG = OwlConfig(
    vision=VisionConfig(64, 256, 4, 4, image_size=56, patch_size=14),
    abstractor=AbstractorConfig(64, 64, 176, 2, 4, attention_probs_dropout_prob=0.0),
    llama=LlamaConfig(512, 128, 352, 4, 4, 4),
    num_query_tokens=8,
)
SAMPLES, LENGTH, LEARNED = 4, 160, 40
LORA = stage2(LoraConfig(r=4))


def sample(index: int) -> EncodedSample:
    """A picture, then text of which the end is learned."""
    generator = torch.Generator().manual_seed(index)
    text = torch.randint(3, 512, (LENGTH - CONFIG.image_rows - 1,), generator=generator).tolist()
    ids = [1, *[-1] * CONFIG.image_rows, *text]
    labels = [IGNORED] * (LENGTH - LEARNED) + ids[-LEARNED:]
    return EncodedSample(ids, labels, [torch.randn(3, 56, 56, generator=generator)], f"made up {index}")


def batch_of(samples: int = SAMPLES) -> MicroBatch:
    return MicroBatch(samples, samples * LENGTH, samples * LEARNED, samples)


def measured(setup: Setup, level: Level, folder: Path) -> int:
    """The most memory of tensors in two updates of two micro-batches, the model's own included."""
    config = setup.config
    build = OPTIMIZERS[setup.optimizer].build
    with LiveMemory() as live:
        model = Owl(replace(config, quantization=None))
        init_weights(model, 0)
        model = model.to(setup.dtype)
        if config.quantization is not None:
            quantize_(model, config.quantization)
        settings = TrainSettings(
            2, 2 * SAMPLES, SAMPLES, OptimizerSettings(warmup=1), precision=setup.precision, progress=False
        )
        trainer = Trainer(model, setup.stage, [Source("made up", sample)], settings, folder, optimizer=build)
        for layer in model.modules():
            if isinstance(layer, Layer):
                layer.level = level
        trainer.run(1)
        live.peak = live.bytes
        trainer.run()
        return live.peak


def of(stage: Stage, scheme: str | None, **more: Any) -> Setup:
    quantization = None if scheme is None else Quantization(scheme)
    return Setup(replace(CONFIG, quantization=quantization), stage, CPU, **more)


SETUPS = {
    "stage1": of(STAGE1, None),
    "stage1-int4": of(STAGE1, "int4"),
    "stage1-int8-fp32": of(STAGE1, "int8", dtype=torch.float32, precision="fp32"),
    "stage1-adamw8bit": of(STAGE1, None, optimizer="adamw8bit"),
    "stage1-muon": of(STAGE1, None, optimizer="muon"),
    "stage2": of(LORA, None),
    "stage2-int8": of(LORA, "int8"),
    "stage2-int4": of(LORA, "int4"),
    "stage2-int4-adamw8bit": of(LORA, "int4", optimizer="adamw8bit"),
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
def test_the_plan_is_what_training_takes(setup: Setup, level: Level, tmp_path: Path) -> None:
    planner = Planner(setup)
    plan = planner.plan(batch_of(), planner.levels(lambda part: level))
    assert plan.total == pytest.approx(measured(setup, level, tmp_path), rel=0.1)


def planner_of(stage: Stage, config: OwlConfig = CONFIG) -> Planner:
    return Planner(Setup(config, stage, CPU))


@pytest.mark.parametrize("stage", [STAGE1, LORA], ids=["stage1", "stage2"])
def test_more_memory_is_less_to_compute_again(stage: Stage) -> None:
    planner = planner_of(stage)
    least = planner.plan(batch_of(), planner.levels(lambda part: "input"))
    most = planner.plan(batch_of())
    budgets = [least.total + share * (most.total - least.total) // 8 for share in range(9)]
    plans = [planner.fit(batch_of(), budget) for budget in budgets]
    assert all(plan.total <= budget for plan, budget in zip(plans, budgets, strict=True))
    assert all(before.flops >= after.flops for before, after in pairwise(plans))
    assert plans[0].flops > plans[4].flops > plans[8].flops == 0
    mixed = [plan for plan in plans if len(set(plan.levels["language"])) > 1]
    assert mixed, "a budget in between keeps more in some layers than in others"


def test_one_byte_less_than_the_least_is_refused() -> None:
    planner = planner_of(STAGE1)
    least = planner.plan(batch_of(), planner.levels(lambda part: "input")).total
    assert planner.fit(batch_of(), least).total == least
    with pytest.raises(UnsupportedError, match=r"a micro-batch of 4 samples takes .* GB are there; give"):
        planner.fit(batch_of(), least - 1)


def test_the_largest_micro_batch_fits_and_one_more_does_not() -> None:
    planner, budget = planner_of(LORA), 40_000_000
    found = planner.largest(batch_of(1), budget)
    assert found.total <= budget
    assert found.batch.samples > 8
    with pytest.raises(UnsupportedError):
        planner.fit(batch_of(found.batch.samples + 1), budget)
    with pytest.raises(UnsupportedError, match="a micro-batch of 1 samples"):
        planner.largest(batch_of(1), 1_000_000)


def test_levels_are_put_on_the_layers() -> None:
    model = Owl(CONFIG)
    apply(model, {"language": ("input", "whole", "attention", "input")})
    assert [layer.level for layer in model.language_model.model.layers] == [
        "input",
        "whole",
        "attention",
        "input",
    ]
    assert {layer.level for layer in model.vision_model.encoder.layers} == {"whole"}


def test_the_table_names_every_part() -> None:
    planner = planner_of(STAGE1)
    lines = planner.plan(batch_of()).table().splitlines()
    assert lines[0].startswith("weights, frozen")
    assert any(line.startswith("at most at a time") for line in lines)
    assert lines[-1] == "language layers keep: 4 whole"


def test_a_7b_model_is_planned_without_memory_for_it() -> None:
    """Stage 2 with int4 weights at 4096 rows on a card of 8.5 GB, bf16 ones on one of 18.5 GB."""
    for scheme, limit in (("int4", 8.5e9), (None, 18.5e9)):
        quantization = None if scheme is None else Quantization(scheme)
        config = replace(OwlConfig.mplug_owl_7b(), quantization=quantization)
        planner = Planner(Setup(config, stage2(LoraConfig()), torch.device("cuda")))
        plan = planner.fit(MicroBatch(2, 4096, 2048, 2), int(limit))
        assert limit * 0.9 < plan.total <= limit
        assert plan.flops > 0
