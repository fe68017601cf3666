"""What the benchmark cases share: rows, the machine they were measured on, and the memory of a process."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import torch

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "safetensors", "triton")


@dataclass(frozen=True)
class Row:
    """One measured quantity. limit_fraction: median / limit, or None where no limit is named.

    case and shape say what ran, contender who ran it ("owl_fast", or a peer's name).
    """

    case: str
    shape: str
    contender: str
    metric: str
    unit: str
    p20: float
    median: float
    p80: float
    limit_fraction: float | None = None


def row(
    case: str,
    shape: str,
    contender: str,
    metric: str,
    unit: str,
    values: Sequence[float],
    limit: float | None = None,
) -> Row:
    """Summary of repeated measurements of one quantity; limit is in the same unit."""
    p20, median, p80 = quantiles(values)
    fraction = median / limit if limit else None
    return Row(case, shape, contender, metric, unit, p20, median, p80, fraction)


def quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    """(p20, median, p80) by linear interpolation."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return fifths[0], statistics.median(values), fifths[3]


def environment() -> dict[str, Any]:
    """Device, versions, commit and date: what a number means nothing without."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "device": _device(),
        "versions": versions,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def table(rows: Sequence[Row]) -> str:
    """Rows as aligned text."""
    head = ("case", "shape", "contender", "metric", "p20", "median", "p80", "unit", "of limit")
    lines = [head] + [
        (
            r.case,
            r.shape,
            r.contender,
            r.metric,
            *(f"{value:.4g}" for value in (r.p20, r.median, r.p80)),
            r.unit,
            "" if r.limit_fraction is None else f"{r.limit_fraction:.1%}",
        )
        for r in rows
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def report(rows: Sequence[Row]) -> dict[str, Any]:
    """The JSON document of a run."""
    return {**environment(), "rows": [asdict(r) for r in rows]}


def resident_bytes() -> int:
    """Anonymous and shared memory of this process; pages of mapped files are the system's to take back."""
    with open("/proc/self/status", encoding="ascii") as status:
        fields = dict(line.split(":", 1) for line in status)
    return sum(int(fields[name].split()[0]) << 10 for name in ("RssAnon", "RssShmem"))


class MemoryPeak:
    """Largest resident_bytes() while the block runs, sampled every `interval` seconds by a thread."""

    def __init__(self, interval: float = 0.005) -> None:
        self.value = 0
        self._interval = interval
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> MemoryPeak:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self.value = max(self.value, resident_bytes())

    def _sample(self) -> None:
        while not self._done.wait(self._interval):
            self.value = max(self.value, resident_bytes())


def available_bytes() -> int:
    """Memory the system can hand out without swapping."""
    with open("/proc/meminfo", encoding="ascii") as info:
        fields = dict(line.split(":", 1) for line in info)
    return int(fields["MemAvailable"].split()[0]) << 10


def forget_cached(path: Path) -> None:
    """Drop a file's pages from the system's cache, so that the next read comes from the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def fail(message: str) -> NoReturn:
    """End the run with one line on stderr and exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def _device() -> dict[str, Any]:
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        names = [line.split(":", 1)[1].strip() for line in info if line.startswith("model name")]
    found: dict[str, Any] = {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _commit() -> str | None:
    """The checkout's commit, with "+" when files differ from it; None outside a checkout."""
    command = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*command, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run(
            [*command, "status", "--porcelain"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if status.stdout.strip() else "")
