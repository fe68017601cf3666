"""Snapshots: a crash at any moment leaves the newest complete one to be found."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from owl_fast.checkpoints.manifest import MANIFEST
from owl_fast.errors import CheckpointError
from owl_fast.training import snapshots
from owl_fast.training.snapshots import load_snapshot, newest_snapshot, prune_snapshots, save_snapshot


class Crash(BaseException):
    """The process dies here."""


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


@pytest.mark.parametrize("existing", [[10], [10, 20]], ids=["new", "over-a-damaged-one"])
def test_a_crash_at_any_moment(existing: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Die at the k-th write, fsync or rename of saving step 20, for every k."""
    for k in itertools.count():
        folder = tmp_path / str(k)
        for step in existing:
            save(folder, step)
        if 20 in existing:
            damage_flip(folder / "checkpoint-20")
        with monkeypatch.context() as patch:
            crash_at(patch, k)
            try:
                save(folder, 20)
            except Crash:
                crashed = True
            else:
                crashed = False
        found = step_of(folder)
        assert found in (10, 20)
        save(folder, 20)  # what the crash left is in nobody's way
        assert step_of(folder) == 20
        prune_snapshots(folder, keep=1)
        assert [path.name for path in folder.iterdir()] == ["checkpoint-20"]
        if not crashed:
            assert found == 20
            assert k > 10
            return


def crash_at(patch: pytest.MonkeyPatch, k: int) -> None:
    left = itertools.count(k, -1)

    def dying(real: Callable[..., Any], half: Callable[..., None] | None = None) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            if next(left) == 0:
                if half is not None:
                    half(*args)
                raise Crash
            return real(*args, **keywords)

        return call

    def half_tensors(_tensors: object, path: Path) -> None:
        path.write_bytes(b"\x40\x00\x00")

    def half_text(path: Path, text: str) -> None:
        path.write_bytes(text[: len(text) // 2].encode())

    patch.setattr(snapshots, "save_file", dying(snapshots.save_file, half_tensors))
    patch.setattr(Path, "write_text", dying(Path.write_text, half_text))
    patch.setattr(os, "fsync", dying(os.fsync))
    patch.setattr(os, "rename", dying(os.rename))
    patch.setattr(snapshots.shutil, "rmtree", dying(snapshots.shutil.rmtree))


def test_every_file_and_both_folders_reach_the_disk_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    real_sync, real_rename = snapshots.sync, os.rename
    monkeypatch.setattr(snapshots, "sync", lambda path: (seen.append(path.name), real_sync(path)))
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
    ]


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    prune_snapshots(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-3", "checkpoint-4"]
