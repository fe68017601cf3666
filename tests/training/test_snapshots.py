"""Snapshots: a crash at any moment leaves the newest complete one to be found."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from owl_fast.checkpoints.manifest import MANIFEST
from owl_fast.errors import CheckpointError
from owl_fast.training import tensor_writer
from owl_fast.training.snapshots import load_snapshot, newest_snapshot, prune_snapshots, save_snapshot
from tests.training.faults import Crash, Faults, die, disk_full

ROOM = ("write", "fsync", "mkdir")  # calls that need room on the disk


def tensors(step: int) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"w": torch.full((5,), step)}, "optimizer": {"w|step": torch.tensor(float(step))}}


def save(folder: Path, step: int) -> Path:
    return save_snapshot(folder, step, tensors(step), {"step": step})


def step_of(folder: Path) -> int | None:
    found = newest_snapshot(folder)
    return None if found is None else load_snapshot(found).state["step"]


def test_round_trip(tmp_path: Path) -> None:
    loaded = load_snapshot(save(tmp_path, 7))
    assert loaded.state == {"step": 7}
    assert {k: list(v) for k, v in loaded.tensors.items()} == {"model": ["w"], "optimizer": ["w|step"]}
    assert torch.equal(loaded.tensors["model"]["w"], tensors(7)["model"]["w"])


def test_newest_by_number_not_by_name_or_time(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        save(tmp_path, step)
    assert step_of(tmp_path) == 100
    assert newest_snapshot(tmp_path / "nowhere") is None


def damage_truncate(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def damage_flip(path: Path) -> None:
    file = path / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(bytes(data))


def damage_missing(path: Path) -> None:
    (path / "optimizer.safetensors").unlink()


def damage_no_manifest(path: Path) -> None:
    (path / MANIFEST).unlink()


def damage_half_manifest(path: Path) -> None:
    file = path / MANIFEST
    file.write_text(file.read_text()[:40])


def damage_empty_manifest(path: Path) -> None:
    (path / MANIFEST).write_text('{"files": {}}')


@pytest.mark.parametrize(
    "damage",
    [
        damage_truncate,
        damage_flip,
        damage_missing,
        damage_no_manifest,
        damage_half_manifest,
        damage_empty_manifest,
    ],
)
def test_a_damaged_one_is_passed_over(damage: Callable[[Path], None], tmp_path: Path) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    damage(newest)
    assert step_of(tmp_path) == 1
    with pytest.raises(CheckpointError, match="checkpoint-2"):
        load_snapshot(newest)


def others(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "existing", ["nothing", "a complete one", "a damaged one"], ids=["new", "over-complete", "over-damaged"]
)
def test_a_crash_at_any_moment(existing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Die at the k-th call of saving step 20 (half a write is done), for every k."""
    monkeypatch.setattr(tensor_writer, "CHUNK", 64)  # several writes for a file
    for k in itertools.count():
        folder = tmp_path / str(k)
        save(folder, 10)
        if existing != "nothing":
            save(folder, 20)
        if existing == "a damaged one":
            damage_flip(folder / "checkpoint-20")
        with monkeypatch.context() as patch:
            faults = Faults(patch, folder, lambda count, k=k: count == k, die)
            with suppress(Crash):
                save(folder, 20)
        assert step_of(folder) in ((20,) if existing == "a complete one" else (10, 20))
        save(folder, 20)  # what the crash left is in nobody's way
        assert step_of(folder) == 20
        prune_snapshots(folder, 1, 20)
        assert others(folder) == ["checkpoint-20"]
        if faults.count <= k:
            assert k > 20
            return


def test_a_crash_while_old_ones_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for k in itertools.count():
        folder = tmp_path / str(k)
        for step in (10, 20, 30):
            save(folder, step)
        damage_flip(save(folder, 40))  # the run went on from 30 once, and not to 40 yet
        with monkeypatch.context() as patch:
            faults = Faults(patch, folder, lambda count, k=k: count == k, die)
            with suppress(Crash):
                prune_snapshots(folder, 2, 30)
        assert step_of(folder) == 30
        prune_snapshots(folder, 2, 30)
        assert others(folder) == ["checkpoint-20", "checkpoint-30"]
        if faults.count <= k:
            assert k > 5
            return


@pytest.mark.parametrize("same_step", [False, True], ids=["new", "replaced"])
def test_a_full_disk_at_any_write(same_step: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC at the k-th call that takes room and all later ones: what was there stays, no more."""
    step = 10 if same_step else 20
    for k in itertools.count():
        folder = tmp_path / str(k)
        save(folder, 10)
        with monkeypatch.context() as patch:
            faults = Faults(patch, folder, lambda count, k=k: count >= k, disk_full, ROOM)
            with suppress(OSError):
                save(folder, step)
        if faults.count <= k:
            assert k > 10
            return
        assert step_of(folder) in (10, step)
        assert [name for name in others(folder) if name.endswith(".tmp")] == []
        assert step_of(save(folder, 20).parent) == 20


def test_every_file_and_both_folders_reach_the_disk_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is fsynced, by the names of the descriptors, and when the folder gets its name."""
    seen: list[str] = []
    real_sync, real_rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        seen.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real_sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", lambda a, b: (seen.append("rename"), real_rename(a, b)))
    save(tmp_path / "out", 3)
    assert seen == [
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
        MANIFEST,
        "checkpoint-3.tmp",
        "rename",
        "out",
        tmp_path.name,
    ]


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    prune_snapshots(tmp_path, 2, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "checkpoint-4"]
