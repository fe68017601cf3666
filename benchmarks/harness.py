"""What the benchmark cases share: rows, their table, and the report that says where they were measured."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import torch

from owl_fast.errors import OwlError

ROOT = Path(__file__).resolve().parents[1]
NUMBERS = "p20", "median", "p80"
COUNT = "requests"  # a unit of which more is neither better nor worse
MORE = "share", "times as much"  # units of which more is better, beside rates
LESS = "us", "ms", "s", "B", "KB", "MB", "GB", "x", "relative", "nats", "nats, mean"
LIBRARIES = (
    "torch",
    "safetensors",
    "triton",
    "transformers",
    "peft",
    "llama-cpp-python",
    "gguf",
    "onnxruntime",
)


@dataclass(frozen=True)
class Row:
    """One measured quantity.

    case and shape say what ran, contender who ran it ("owl_fast", or a peer's name). limit_fraction: how much
    of what the machine gives was reached, None where no limit is named. rate: work done in the median time.
    ours: of a peer, how many times as fast owl_fast was in the same run.
    note: what the reader has to know; of a peer that is not there, why (its numbers are None).
    """

    case: str
    shape: str
    contender: str
    metric: str
    unit: str
    p20: float | None = None
    median: float | None = None
    p80: float | None = None
    limit_fraction: float | None = None
    rate: float | None = None
    rate_unit: str = ""
    note: str = ""
    ours: float | None = None


def row(
    case: str,
    shape: str,
    contender: str,
    metric: str,
    unit: str,
    values: Sequence[float],
    limit: float | None = None,
    note: str = "",
) -> Row:
    """Summary of repeated measurements of one quantity, of which `limit` (in the same unit) is the most."""
    p20, median, p80 = quantiles(values)
    fraction = median / limit if limit else None
    return Row(case, shape, contender, metric, unit, p20, median, p80, fraction, note=note)


def absent(case: str, shape: str, contender: str, metric: str, unit: str, reason: str) -> Row:
    """A peer that gave no numbers."""
    return Row(case, shape, contender, metric, unit, note=f"absent: {reason}")


def beside_ours(rows: Sequence[Row]) -> list[Row]:
    """The same rows, of peers also with the ratio of medians."""
    ours = {
        (r.case, r.shape, r.metric, r.unit): r.median
        for r in rows
        if r.contender == "owl_fast" and r.median is not None
    }
    found = []
    for r in rows:
        mine = ours.get((r.case, r.shape, r.metric, r.unit))
        better = more_is_better(r.unit)
        if r.contender != "owl_fast" and mine and r.median and better is not None and r.unit not in MORE:
            r = replace(r, ours=mine / r.median if better else r.median / mine)
        found.append(r)
    return found


def more_is_better(unit: str) -> bool | None:
    """None of what is neither, such as counts."""
    if unit.endswith("/s") or unit in MORE:
        return True
    return False if unit in LESS else None


def write_whole(path: Path, text: str) -> None:
    """All of it or nothing: what was there stays until the new text is on the disk. OwlError when it cannot
    be written; what UTF-8 cannot hold is escaped."""
    data, path = text.encode("utf-8", "backslashreplace"), path.resolve()
    beside = path.with_name(f"{path.name}.new")
    try:
        if path.exists() and not path.is_file():  # /dev/stdout
            path.write_bytes(data)
            return
        beside.write_bytes(data)
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise OwlError(f"{path}: cannot be written ({error.strerror})") from None


def quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    """(p20, median, p80) by linear interpolation."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return fifths[0], statistics.median(values), fifths[3]


def table(rows: Sequence[Row]) -> str:
    """Rows as aligned text."""
    head = (
        "case",
        "shape",
        "contender",
        "metric",
        *NUMBERS,
        "unit",
        "rate",
        "of limit",
        "owl_fast is",
        "note",
    )
    lines: list[tuple[str, ...]] = [head]
    for r in rows:
        numbers = (number(getattr(r, name)) for name in NUMBERS)
        rate = "" if r.rate is None else f"{number(r.rate)} {r.rate_unit}"
        fraction = "" if r.limit_fraction is None else f"{r.limit_fraction:.1%}"
        ours = "" if r.ours is None else f"{r.ours:.2f} x"
        lines.append((r.case, r.shape, r.contender, r.metric, *numbers, r.unit, rate, fraction, ours, r.note))
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Cells in columns under a head, the first line; a column with nothing below its head is left out."""
    used = [i for i in range(len(lines[0])) if any(line[i] for line in lines[1:])]
    widths = {i: max(len(line[i]) for line in lines) for i in used}
    return "\n".join("  ".join(line[i].ljust(widths[i]) for i in used).rstrip() for line in lines)


def number(value: float | None) -> str:
    """Four digits that count, or whole; nothing for None."""
    if value is None:
        return ""
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


def report(rows: Sequence[Row]) -> dict[str, Any]:
    """The JSON document of a run."""
    return {**environment(), "rows": [asdict(r) for r in rows]}


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
    """The checkout's commit, with "+" when its files were changed; None outside a checkout."""
    command = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run([*command, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run(
            [*command, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if status.stdout.strip() else "")
