"""Runs that are killed, starved and resumed end bit-equal to the undisturbed one."""

from __future__ import annotations

import itertools
import random
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from owl_fast.errors import DiskError
from owl_fast.training import run_folder
from owl_fast.training.snapshots import newest_snapshot
from tests.training.faults import Crash, Faults, die, disk_full
from tests.training.survivor import (
    SETTINGS,
    Run,
    assert_same_run,
    kill,
    metrics,
    shorter,
    start,
    trainer,
    wait_somewhere,
)

ROOM = ("write", "pwrite", "fsync", "mkdir")  # calls that need room on the disk


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run, with a snapshot of every update."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    trainer(folder, shorter(keep=100)).run()
    return folder


def part(whole: Path, folder: Path, step: int) -> Path:
    """A run folder as a death after update `step` leaves it: later metrics, no later snapshot."""
    folder.mkdir()
    if step:
        shutil.copytree(whole / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    lines = (whole / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[: step + 1]) + '{"step": 99, "lo')
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_at_every_step(workers: int, whole: Path, tmp_path: Path) -> None:
    """From each of its snapshots the run reaches the next one, bit for bit: so it reaches the end."""
    for step in range(SETTINGS.steps):
        folder = part(whole, tmp_path / str(step), step)
        torch.rand(17)  # the caller's own random numbers play no part
        resumed = trainer(folder, shorter(workers=workers))
        assert resumed.step == step
        resumed.run(until=step + 1)
        assert_same_run(folder, part(whole, tmp_path / f"{step}-whole", step + 1), upto=step + 1)


def test_killed_at_random_moments(whole: Path, tmp_path: Path) -> None:
    """kill -9, twenty times, wherever the run is; half of the lives have reader processes."""
    rng, folder = random.Random(1), tmp_path / "killed"
    ended = 0
    for life in range(20):
        process = start(Run(folder, shorter(workers=2 * (life % 2)), slow=0.002))
        wait_somewhere(folder, process, rng)
        kill(process)
        process.join()
        assert process.exitcode in (0, -9)
        ended += process.exitcode == 0
    process = start(Run(folder))
    process.join()
    assert process.exitcode == 0
    assert ended < 10
    assert_same_run(folder, whole)


def crashing(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Die at the k-th call of a run of `steps` updates behind update 3, for every k; then go on."""
    end = 3 + steps
    for k in itertools.count():
        folder = part(whole, tmp_path / str(k), 3)
        with monkeypatch.context() as patch, suppress(Crash):
            faults = Faults(patch, folder, lambda count, k=k: count == k, die)
            trainer(folder, shorter(keep=1)).run(until=end)
        found = newest_snapshot(folder)
        assert found is not None
        assert found.name in {f"checkpoint-{3 + i}" for i in range(steps + 1)}
        trainer(folder, shorter(keep=1)).run(until=end)
        assert_same_run(folder, part(whole, tmp_path / f"{k}-whole", end), upto=end)
        shutil.rmtree(folder)
        shutil.rmtree(tmp_path / f"{k}-whole")
        if faults.count <= k:
            assert k > 20 * steps
            return


def test_a_crash_at_every_call_of_an_update(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashing(whole, tmp_path, monkeypatch, steps=1)


@pytest.mark.slow
def test_a_crash_at_every_call_of_five_updates(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashing(whole, tmp_path, monkeypatch, steps=5)


def starving(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lasting: bool, every: int) -> None:
    """The disk is full from the k-th write on, for good or for a moment: the run goes on, and says so."""
    end = 5
    for k in itertools.count(step=every):
        folder = part(whole, tmp_path / str(k), 3)
        wanted = part(whole, tmp_path / f"{k}-whole", end)
        with monkeypatch.context() as patch:
            failing = range(k, 10**6 if lasting else k + 4)
            faults = Faults(patch, folder, lambda count, failing=failing: count in failing, disk_full, ROOM)
            run = trainer(folder, shorter(keep=1))
            run.run(until=end)
            run.close()
            assert run.folder is not None
            failed = run.folder.unsaved
        assert newest_snapshot(folder) is not None
        if not lasting and not failed:
            assert_same_run(folder, wanted, upto=end)
        trainer(folder, shorter(keep=1)).run(until=end)  # there is room now
        assert_same_run(folder, wanted, upto=end)
        if faults.count <= k:
            assert k > 20
            return


@pytest.mark.parametrize("lasting", [False, True], ids=["passing", "lasting"])
def test_a_full_disk(lasting: bool, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starving(whole, tmp_path, monkeypatch, lasting, every=5)


@pytest.mark.slow
@pytest.mark.parametrize("lasting", [False, True], ids=["passing", "lasting"])
def test_a_full_disk_at_every_write(
    lasting: bool, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starving(whole, tmp_path, monkeypatch, lasting, every=1)


def test_a_run_whose_last_save_fails_says_so(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = part(whole, tmp_path / "run", 38)
    with monkeypatch.context() as patch:
        Faults(patch, folder, lambda count: True, disk_full, ROOM)
        with pytest.raises(DiskError, match=r"the snapshot of update 40 could not .*No space.*make room"):
            trainer(folder).run()
    assert caplog.text.count("tries again") == 2
    trainer(folder).run()
    assert_same_run(folder, whole)


def test_room_is_looked_for_first(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(tmp_path / "run")
    estimate = 3 * sum(parameter.nbytes for parameter in run.parameters.values())
    for free, enough in ((int(2.2 * estimate) - 2, False), (int(2.2 * estimate) + 2, True)):
        usage = shutil._ntuple_diskusage(free, 0, free)
        monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda path, usage=usage: usage)
        if enough:
            trainer(tmp_path / "run").run(until=1)
        else:
            with pytest.raises(DiskError, match=r"are free, and snapshots of .* need .* make room"):
                run.run()
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1]
