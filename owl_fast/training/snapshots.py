"""Snapshots of a run that survive a crash at any moment.

    checkpoint-N.tmp/ -> every file written and fsynced -> the manifest (sizes and SHA-256) last,
    fsynced -> folder fsynced -> renamed to checkpoint-N -> parent fsynced

The newest complete one is found by looking, never through a pointer that could be stale.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor

from owl_fast.checkpoints.manifest import MANIFEST, Manifest, write_manifest
from owl_fast.errors import CheckpointError
from owl_fast.files import read_json, sync, write_json

STATE = "state.json"
FOLDER = re.compile(r"checkpoint-(\d+)")

logger = logging.getLogger(__name__)


class Snapshot(NamedTuple):
    """tensors by file stem ("model", "optimizer"), and the JSON state."""

    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save_snapshot(
    out_dir: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> Path:
    """Write out_dir/checkpoint-STEP; an older folder of that name is replaced. Returns the folder."""
    target, staging = out_dir / f"checkpoint-{step}", out_dir / f"checkpoint-{step}.tmp"
    out_dir.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    for stem, group in tensors.items():
        path = staging / f"{stem}.safetensors"
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in group.items()}, path)
        sync(path)
    write_json(staging / STATE, dict(state))
    sync(staging / STATE)
    write_manifest(staging)
    sync(staging / MANIFEST)
    sync(staging)
    if target.exists():
        shutil.rmtree(target)
    os.rename(staging, target)
    sync(out_dir)
    return target


def newest_snapshot(out_dir: Path) -> Path | None:
    """The complete snapshot with the highest step; damaged ones are passed over with a warning."""
    for _, path in sorted(_folders(out_dir), reverse=True):
        try:
            _check(path)
            return path
        except CheckpointError as trouble:
            logger.warning("%s is passed over: %s", path, trouble)
    return None


def load_snapshot(path: Path) -> Snapshot:
    """Read a snapshot; CheckpointError when a file is missing or not what the manifest says."""
    _check(path)
    tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
    return Snapshot(tensors, read_json(path / STATE))


def prune_snapshots(out_dir: Path, keep: int) -> None:
    """Remove all but the newest `keep`, and what a crash left half-written; call it after a save."""
    folders = sorted(_folders(out_dir))
    for _, path in folders[: max(0, len(folders) - keep)]:
        shutil.rmtree(path)
    for path in out_dir.glob("checkpoint-*.tmp"):
        shutil.rmtree(path)


def _folders(out_dir: Path) -> list[tuple[int, Path]]:
    if not out_dir.is_dir():
        return []
    found = ((FOLDER.fullmatch(path.name), path) for path in out_dir.iterdir())
    return [(int(match[1]), path) for match, path in found if match]


def _check(path: Path) -> None:
    """CheckpointError unless every file is the one that was written."""
    manifest = Manifest.read(path)
    if manifest is None:
        raise CheckpointError(f"{path}: {MANIFEST} is missing; the snapshot is incomplete")
    manifest.check_size(STATE)
    manifest.check()
