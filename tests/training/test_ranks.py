"""Two processes as one run: the same losses and weights as one process, and one end for both."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from owl_fast.errors import DataError, UnsupportedError
from owl_fast.models.owl import Owl
from owl_fast.training import FULL_LLAMA, STAGE1, OptimizerSettings, Source, Stage, TrainSettings
from owl_fast.training.ranks import Ranks
from owl_fast.training.sources import DrawPlan
from owl_fast.training.updates import UpdateReader
from tests.training.owls import made_up, small_owl
from tests.training.pairs import LONGER, STAGE2, Rank, codes, pair, said
from tests.training.survivor import assert_same_run, metrics, wait_until

SETTINGS = TrainSettings(
    steps=3, batch=5, micro_batch=2, optimizer=OptimizerSettings(lr=1e-3), save_every=3, progress=False
)
ROOT = Path(__file__).resolve().parents[2]


def assert_close(one: Path, two: Path, settings: TrainSettings) -> None:
    """Losses to 1e-6, and gradients by Adam's first moment, which is their running mean."""
    for alone, shared in zip(metrics(one), metrics(two), strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], abs=1e-6)
        assert (shared["labelled"], shared["rows"]) == (alone["labelled"], alone["rows"])
    name = f"checkpoint-{settings.steps}/optimizer.safetensors"
    first, second = (load_file(folder / name) for folder in (one, two))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        if name.endswith("exp_avg"):
            assert (tensor - second[name]).abs().max() <= 1e-6, name


@pytest.mark.parametrize("stage", [STAGE1, STAGE2, FULL_LLAMA], ids=lambda stage: stage.name)
def test_two_ranks_are_one_run(stage: Stage, tmp_path: Path) -> None:
    """Three samples on one rank, two on the other: two micro-batches and one."""
    Rank(tmp_path / "one", SETTINGS, stage).train()
    assert codes(pair(tmp_path / "two", SETTINGS, stage)) == [0, 0]
    assert_close(tmp_path / "one", tmp_path / "two", SETTINGS)


@pytest.mark.parametrize("sources", ["text", "few"])
def test_ranks_without_pictures(sources: str, tmp_path: Path) -> None:
    """What one rank, or none, has used: its gradient is summed, or it is left alone, as in one process."""
    for micro_batch in (1, 4):
        settings = replace(SETTINGS, steps=4, batch=8, micro_batch=micro_batch, save_every=4)
        one, two = tmp_path / f"one{micro_batch}", tmp_path / f"two{micro_batch}"
        Rank(one, settings, STAGE2, sources=sources).train()
        assert codes(pair(two, settings, STAGE2, sources=sources)) == [0, 0]
        assert_close(one, two, settings)
        names = load_file(two / "checkpoint-4/optimizer.safetensors").keys()
        assert any(name.startswith("abstractor") for name in names) == (sources == "few")


def at(step: int, rank: int, act: Any, here: int, now: int) -> None:
    if (here, now) == (rank, step):
        act()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("victim", "step"), [(0, 2), (1, 0)])
def test_a_killed_rank_ends_the_other(victim: int, step: int, tmp_path: Path) -> None:
    killed(victim, step, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("step", [0, 1, 4, 7, 11])
def test_a_killed_rank_ends_the_other_at_ten_points(victim: int, step: int, tmp_path: Path) -> None:
    killed(victim, step, tmp_path)


def killed(victim: int, step: int, tmp_path: Path) -> None:
    """Within 90 s, by an error that names it; both started again end as if nothing had happened."""
    folder, other = tmp_path / "run", 1 - victim
    found = codes(pair(folder, LONGER, STAGE2, before=partial(at, step, victim, die)))
    assert found[victim] == -signal.SIGKILL
    assert found[other] == 1
    text = said(folder, other).read_text()
    assert text.startswith(f"rank {victim} of 2 does not answer rank {other}")
    assert "\n" not in text
    assert codes(pair(folder, LONGER, STAGE2)) == [0, 0]
    assert codes(pair(tmp_path / "whole", LONGER, STAGE2)) == [0, 0]
    assert_same_run(folder, tmp_path / "whole", upto=12)


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_rank_that_hangs_is_named(victim: int, tmp_path: Path) -> None:
    folder, other = tmp_path / "run", 1 - victim
    processes = pair(
        folder, LONGER, STAGE2, timeout=2.0, before=partial(at, 2, victim, partial(time.sleep, 1000))
    )
    processes[other].join(60)
    assert processes[other].exitcode == 1
    assert said(folder, other).read_text().startswith(f"rank {victim} of 2 does not answer rank {other}")
    processes[victim].kill()


@pytest.mark.parametrize("signalled", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_signal_to_one_rank_stops_both(signalled: int, tmp_path: Path) -> None:
    """They agree, save after the update under way, and resume bit-equal."""
    folder = tmp_path / "run"
    processes = pair(folder, LONGER, STAGE2, before=partial(at, 4, signalled, stop_oneself))
    assert codes(processes) == [143, 143]
    assert (
        "SIGTERM ended the run after update 4 of 12; started again, it goes on from there"
        in said(folder, 1).read_text()
    )
    assert codes(pair(folder, LONGER, STAGE2)) == [0, 0]
    assert codes(pair(tmp_path / "whole", LONGER, STAGE2)) == [0, 0]
    assert_same_run(folder, tmp_path / "whole", upto=12)


def stop_oneself() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_others_hear_that_the_folder_is_locked(tmp_path: Path) -> None:
    first = pair(tmp_path / "run", LONGER, STAGE2, before=partial(at, 3, 0, partial(time.sleep, 1000)))
    wait_until((tmp_path / "run/checkpoint-3").exists)
    assert codes(pair(tmp_path / "run", LONGER, STAGE2)) == [6, 1]
    assert "rank 0 of 2 failed while it was opening the run folder" in said(tmp_path / "run", 1).read_text()
    for process in first:
        process.kill()


def long_evaluation(_model: Owl, step: int) -> dict[str, Any]:
    time.sleep(4)
    return {"long": step}


def broken_evaluation(_model: Owl, _step: int) -> dict[str, Any]:
    raise DataError("nothing to evaluate on")


def test_a_long_evaluation_is_waited_for(tmp_path: Path) -> None:
    """Longer than a rank may be silent: the first one shows that it is alive."""
    settings = replace(LONGER, steps=2, eval_every=2)
    assert codes(pair(tmp_path / "run", settings, STAGE2, timeout=2.0, evaluate=long_evaluation)) == [0, 0]
    assert metrics(tmp_path / "run")[-1]["long"] == 2


def test_a_failed_evaluation_ends_all(tmp_path: Path) -> None:
    settings = replace(LONGER, eval_every=2)
    assert codes(pair(tmp_path / "run", settings, STAGE2, evaluate=broken_evaluation)) == [1, 1]
    assert said(tmp_path / "run", 0).read_text() == "nothing to evaluate on"
    assert "rank 0 of 2 failed while it was evaluating" in said(tmp_path / "run", 1).read_text()


def test_ranks_that_see_different_folders_are_refused(tmp_path: Path) -> None:
    Rank(tmp_path / "elsewhere", replace(LONGER, steps=3), STAGE2).train()
    processes = pair(tmp_path / "run", LONGER, STAGE2, own_folder=tmp_path / "elsewhere")
    assert codes(processes) == [1, 1]
    text = said(tmp_path / "run", 0).read_text()
    assert text.startswith("rank 1 begins after update 3, rank 0 begins after update 0")


def torchrun(folder: Path, *deaths: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["--max-restarts=2", "-m", "tests.training.torchrun_owl", str(folder), *deaths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_torchrun_restarts_what_died(tmp_path: Path) -> None:
    """Each rank dies once; torchrun starts both again each time, and the end is bit-equal."""
    torchrun(tmp_path / "whole")
    torchrun(tmp_path / "run", "1:3", "0:7")
    assert len(list(tmp_path.glob("run.died.*"))) == 2
    assert_same_run(tmp_path / "run", tmp_path / "whole", upto=12)


def test_ranks_share_every_sample_once() -> None:
    sources = [Source("text", made_up, size=11), Source("pictures", partial(made_up, pictures=1), weight=2.0)]
    readers = [
        UpdateReader(DrawPlan(sources, 0), 5, 2, small_owl().config.image_rows, ranks=Ranks(rank, size))
        for rank, size in ((0, 1), (0, 2), (1, 2))
    ]
    for step in range(4):
        whole, first, second = (
            [r for number in reader.of_update(step) for r in reader(number).records] for reader in readers
        )
        assert (len(first), len(second)) == (3, 2)
        assert [reader.common for reader in readers] == [3, 1, 1]
        assert sorted(first + second) == sorted(whole)


def test_fewer_samples_than_processes_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="batch 2"):
        UpdateReader(DrawPlan([Source("text", made_up)], 0), 2, 1, 3, ranks=Ranks(0, 3))


def test_alone_there_is_nobody_to_talk_to() -> None:
    ranks = Ranks.current()
    assert (ranks.rank, ranks.size, ranks.leads) == (0, 1, True)
    assert ranks.sum(1.0, 2.5) == [1.0, 2.5]
    assert ranks.gather(["a"]) == ["a"]
    assert ranks.alone("working", lambda: 7) == 7
    module = torch.nn.Linear(1, 1)
    assert ranks.share(module) is module
    ranks.wait()
    ranks.check_equal("is here")
