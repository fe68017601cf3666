"""Snapshots of a run that survive a crash at any moment.

    checkpoint-N.tmp/ -> every file written and fsynced -> the manifest (sizes and SHA-256) last,
    fsynced -> folder fsynced -> renamed to checkpoint-N -> parent fsynced

A complete checkpoint-N in the way is called checkpoint-N.old until the new one stands. The newest complete
one is found by looking, never through a pointer that could be stale.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file
from torch import Tensor

from owl_fast.checkpoints.manifest import MANIFEST, Manifest, write_manifest
from owl_fast.errors import CheckpointError
from owl_fast.files import read_json, sync, write_json
from owl_fast.training.tensor_writer import write_tensors_synced

STATE = "state.json"
FOLDER = re.compile(r"checkpoint-(\d+)(\.old)?")

logger = logging.getLogger(__name__)


class Snapshot(NamedTuple):
    """tensors by file stem ("model", "optimizer"), and the JSON state."""

    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save_snapshot(
    out_dir: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> Path:
    """Write out_dir/checkpoint-STEP; an older folder of that name is replaced. Returns the folder.

    OSError (CheckpointError where what was written reads back wrong): nothing that was there is harmed.
    """
    target, staging = out_dir / f"checkpoint-{step}", out_dir / f"checkpoint-{step}.tmp"
    out_dir.mkdir(parents=True, exist_ok=True)
    try:
        _fill(staging, tensors, state)
    except (OSError, CheckpointError):
        shutil.rmtree(staging, ignore_errors=True)  # what is useless takes no room
        raise
    old = target.with_suffix(".old")
    if target.exists() and is_complete(target):
        shutil.rmtree(old, ignore_errors=True)
        os.rename(target, old)
    elif target.exists():
        shutil.rmtree(target)
    os.rename(staging, target)
    sync(out_dir)
    sync(out_dir.parent)  # the run folder itself may be new
    shutil.rmtree(old, ignore_errors=True)
    return target


def _fill(staging: Path, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    for stem, group in tensors.items():
        write_tensors_synced(staging / f"{stem}.safetensors", group)
    write_json(staging / STATE, dict(state))
    sync(staging / STATE)
    write_manifest(staging)
    sync(staging / MANIFEST)
    sync(staging)


def newest_snapshot(out_dir: Path) -> Path | None:
    """The complete snapshot with the highest step; damaged ones are passed over with a warning."""
    for _, path in reversed(_folders(out_dir)):
        try:
            _check(path)
            return path
        except CheckpointError as trouble:
            logger.warning("%s is passed over: %s", path, trouble)
    return None


def is_complete(path: Path) -> bool:
    """Whether every file is the one that was written."""
    try:
        _check(path)
    except CheckpointError:
        return False
    return True


def load_snapshot(path: Path) -> Snapshot:
    """Read a snapshot; CheckpointError when a file is missing or not what the manifest says."""
    _check(path)
    tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
    return Snapshot(tensors, read_json(path / STATE))


def prune_snapshots(out_dir: Path, keep: int, newest: int) -> None:
    """Remove all but the last `keep`, and what a crash left half-written, after a save of step `newest`.

    One of a later step is no part of the run any more: it was damaged, and the run went on from an older one.
    """
    folders = _folders(out_dir)
    kept = sorted({step for step, path in folders if step <= newest and not path.suffix})[-keep:]
    for step, path in folders:
        if step not in kept or path.suffix:
            shutil.rmtree(path)
    for path in out_dir.glob("checkpoint-*.tmp"):
        shutil.rmtree(path)


def snapshot_bytes(out_dir: Path) -> int:
    """Bytes of all snapshots, whole or not."""
    return sum(file.stat().st_size for file in out_dir.glob("checkpoint-*/*"))


def _folders(out_dir: Path) -> list[tuple[int, Path]]:
    """(step, folder) by rising step; of one step the replaced one comes first."""
    if not out_dir.is_dir():
        return []
    found = ((FOLDER.fullmatch(path.name), path) for path in out_dir.iterdir())
    return sorted(((int(match[1]), path) for match, path in found if match), key=_by_step)


def _by_step(item: tuple[int, Path]) -> tuple[int, bool]:
    return item[0], not item[1].suffix


def _check(path: Path) -> None:
    """CheckpointError unless every file is the one that was written."""
    manifest = Manifest.read(path)
    if manifest is None:
        raise CheckpointError(f"{path}: {MANIFEST} is missing; the snapshot is incomplete")
    manifest.check_size(STATE)
    manifest.check()
