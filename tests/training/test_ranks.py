"""Two processes as one run: the same losses and weights as one process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file

from owl_fast.errors import UnsupportedError
from owl_fast.training import FULL_LLAMA, STAGE1, OptimizerSettings, Source, Stage, Trainer, TrainSettings
from owl_fast.training.ranks import Ranks
from owl_fast.training.sources import DrawPlan
from owl_fast.training.updates import UpdateReader
from tests.training.owls import made_up, small_owl, without_times

SOURCES = [
    Source("text", made_up, size=11),
    Source("pictures", lambda index: made_up(index, pictures=1 + index % 2), weight=2.0),
]
SETTINGS = TrainSettings(
    steps=3, batch=5, micro_batch=2, optimizer=OptimizerSettings(lr=1e-3), save_every=3, progress=False
)


def train(out_dir: Path, stage: Stage) -> None:
    model = small_owl()
    for layer in model.abstractor.encoder.layers:
        layer.crossattention.attention.dropout = 0.0  # it draws differently for each cut
    sources = SOURCES[1:] if stage == STAGE1 else SOURCES
    Trainer(model, stage, sources, SETTINGS, out_dir).run()


def one_of_two(rank: int, folder: Path, stage: Stage) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    train(folder / "two", stage)
    dist.destroy_process_group()


@pytest.mark.parametrize("stage", [STAGE1, FULL_LLAMA], ids=lambda stage: stage.name)
def test_two_ranks_are_one_run(stage: Stage, tmp_path: Path) -> None:
    train(tmp_path / "one", stage)
    mp.spawn(one_of_two, (tmp_path, stage), nprocs=2)
    logs = [
        without_times([json.loads(line) for line in (tmp_path / name / "metrics.jsonl").open()])
        for name in ("one", "two")
    ]
    for alone, shared in zip(*logs, strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], abs=1e-6)
        assert (shared["labelled"], shared["rows"]) == (alone["labelled"], alone["rows"])
    states = [load_file(tmp_path / name / "checkpoint-3/optimizer.safetensors") for name in ("one", "two")]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        # Adam's first moment is a running mean of the gradients themselves.
        if name.endswith("exp_avg"):
            assert (tensor - states[1][name]).abs().max() <= 1e-6, name


def test_ranks_share_every_sample_once() -> None:
    readers = [
        UpdateReader(DrawPlan(SOURCES, 0), 5, 2, small_owl().config.image_rows, ranks=Ranks(rank, size))
        for rank, size in ((0, 1), (0, 2), (1, 2))
    ]
    for step in range(4):
        whole, first, second = ([r for batch in reader(step) for r in batch.records] for reader in readers)
        assert (len(first), len(second)) == (3, 2)
        assert sorted(first + second) == sorted(whole)


def test_fewer_samples_than_processes_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="batch 2"):
        UpdateReader(DrawPlan(SOURCES, 0), 2, 1, 3, ranks=Ranks(0, 3))
