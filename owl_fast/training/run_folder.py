"""What a run keeps on disk: its lock, metrics.jsonl and snapshots, and what a full disk means for them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from owl_fast.errors import CheckpointError, DiskError
from owl_fast.training.metrics import MetricsLog
from owl_fast.training.run_lock import RunLock
from owl_fast.training.snapshots import prune_snapshots, save_snapshot, snapshot_bytes

METRICS = "metrics.jsonl"
ROOM = 2.2  # snapshots that must fit when a run begins: the one that is kept, and the next one beside it
GIB = 1 << 30

logger = logging.getLogger(__name__)


class RunFolder:
    """The folder of one run, for the process that writes in it; keep: snapshots kept.

    LockedError when another process is there.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self.path, self.keep = path, keep
        self.lock = RunLock(path)
        self.log: MetricsLog | None = None
        self.unsaved: str | None = None  # why the last save failed

    def open_log(self, step: int) -> None:
        """Go on with the metrics behind update `step`."""
        self.log = MetricsLog(self.path / METRICS, step)

    def record(self, line: dict[str, Any]) -> None:
        assert self.log is not None
        self.log.append(line)

    def check_room(self, estimate: int) -> None:
        """DiskError unless snapshots of `estimate` bytes fit; those already there count as room."""
        wanted = max(ROOM * estimate - snapshot_bytes(self.path), estimate * (ROOM - 1))
        free = shutil.disk_usage(self.path).free
        if free < wanted:
            raise DiskError(
                f"{self.path}: {free / GIB:.2f} GiB are free, and snapshots of {estimate / GIB:.2f} GiB need "
                f"{wanted / GIB:.2f} GiB; make room, or give a folder on another disk"
            )

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> bool:
        """Whether a snapshot was written; a disk that does not take it is complained of, and no more."""
        if self.log is not None:
            self.log.flush(sync=True)
        try:
            save_snapshot(self.path, step, tensors, state)
        except (OSError, CheckpointError) as error:
            self.unsaved = (
                f"{self.path}: the snapshot of update {step} could not be written ({_brief(error)})"
            )
            logger.error("%s; the run goes on and tries again at the next", self.unsaved)
            return False
        self.unsaved = None
        try:
            prune_snapshots(self.path, self.keep, step)
        except OSError as error:
            logger.error("%s: an old snapshot could not be removed (%s)", self.path, error)
        return True

    def check_saved(self) -> None:
        """DiskError when the last snapshot, or a line of the metrics, is not on the disk."""
        if self.unsaved is not None:
            raise DiskError(f"{self.unsaved}; make room and start again, it goes on from the newest one")
        if self.log is not None and self.log.waiting:
            self.log.flush()
            if self.log.waiting:
                raise DiskError(f"{self.log.path}: its last lines could not be written; make room there")

    def close(self) -> None:
        if self.log is not None and self.log.waiting:
            self.log.flush()
        self.lock.release()


def _brief(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
