"""Result documents, the JSON that benchmarks/run.py writes: read, or refused when they are something else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.harness import Row, beside_ours
from owl_fast.errors import DataError
from owl_fast.files import read_json

WORDS = "case", "shape", "contender", "metric", "unit"  # what every row has
NUMBERS = "p20", "median", "p80", "limit_fraction", "rate", "ours"
LATER = "rate_unit", "note"  # words that rows of earlier days may lack
LARGEST = 1e100  # no measurement; drawing would fail with it
KNOWN = {field.name for field in fields(Row)}


@dataclass(frozen=True)
class Document:
    """Of one run. machine: what ran it, in words; commit: None outside a checkout."""

    machine: str
    device: Mapping[str, Any]
    versions: Mapping[str, str]
    commit: str | None
    date: str
    rows: tuple[Row, ...]

    @property
    def told_versions(self) -> str:
        return ", ".join(f"{name} {version}" for name, version in self.versions.items())


def read(path: Path) -> dict[str, Any]:
    """A document as it is in a file. OwlError when the file cannot be read or has none."""
    raw = read_json(path)
    parse(raw, str(path))
    return raw


def parse(raw: Mapping[str, Any], name: str = "document") -> Document:
    """name: what an error calls it. Every row of a peer has the ratio to ours, also in older documents."""
    for key, kind in {"device": Mapping, "versions": Mapping, "date": str, "rows": list}.items():
        if not isinstance(raw.get(key), kind):
            raise _refused(name, f"'{key}' is {_told(raw.get(key))}")
    commit = raw.get("commit")
    if not isinstance(commit, str | None):
        raise _refused(name, f"'commit' is {_told(commit)}")
    rows = beside_ours([_row(found, f"{name}: row {place}") for place, found in enumerate(raw["rows"])])
    device, versions = raw["device"], {key: str(value) for key, value in raw["versions"].items()}
    return Document(_machine(device, rows), device, versions, commit, raw["date"], tuple(rows))


def _row(raw: object, name: str) -> Row:
    if not isinstance(raw, Mapping):
        raise _refused(name, f"it is {_told(raw)}")
    for key in WORDS:
        if not isinstance(raw.get(key), str):
            raise _refused(name, f"'{key}' is {_told(raw.get(key))}")
    for key in NUMBERS:
        value = raw.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise _refused(name, f"'{key}' is {_told(value)}")
        if value is not None and not abs(value) < LARGEST:
            raise _refused(name, f"'{key}' is {value!s:.40}")
    for key in LATER:
        if not isinstance(raw.get(key, ""), str):
            raise _refused(name, f"'{key}' is {_told(raw[key])}")
    return Row(**{key: value for key, value in raw.items() if key in KNOWN})


def _machine(device: Mapping[str, Any], rows: list[Row]) -> str:
    """The GPU, or the CPU with its cores. Only a run on a CPU measures how fast that multiplies int8."""
    on_cpu = any(row.case == "machine" and row.metric == "int8 matmul" for row in rows)
    if device.get("gpu") and not on_cpu:
        return str(device["gpu"])
    cpu = " ".join(str(device.get("cpu", "unknown CPU")).replace("(R)", "").replace("Processor", "").split())
    return f"{cpu}, {device['cores']} cores" if "cores" in device else cpu


def _told(value: object) -> str:
    return "missing" if value is None else f"{value!r:.60}"


def _refused(name: str, why: str) -> DataError:
    return DataError(f"{name}: no result of benchmarks/run.py --json ({why})")
