"""data: 200,000 rows of JSON lines, of one JSON list and of tars: opened, then read in a run's order.

Memory is what the process takes beyond what it had before the files were opened: it must not grow with the
rows by more than the few numbers noted of each. Pictures are as they are in the tars; none is decoded.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import Row, row
from benchmarks.memory import MemoryPeak, resident_bytes
from owl_fast.training.datasets import as_sources, open_dataset
from owl_fast.training.sources import DrawPlan

ROWS = 200_000
SHARD_ROWS = 10_000
PICTURE_BYTES = 2_000
WORDS = [
    "a",
    "boat",
    "on",
    "the",
    "quiet",
    "lake",
    "behind",
    "two",
    "old",
    "trees",
    "in",
    "the",
    "evening",
    "light",
    "and",
    "some",
    "birds",
    "above",
]


def run(args: argparse.Namespace) -> list[Row]:
    found = []
    for name, write in (("JSON lines", _lines), ("JSON list", _list), ("tars", _tars)):
        with tempfile.TemporaryDirectory(prefix="owl-data-", dir=args.work_dir) as folder:
            spec = write(Path(folder))
            found += measured(f"{name}, {ROWS} rows", spec)
    return found


def measured(shape: str, spec: str) -> list[Row]:
    """Rows a second while opening and while reading each row once, and the most memory both take."""
    before = resident_bytes()
    with MemoryPeak() as peak:
        begin = time.perf_counter()
        dataset = open_dataset(spec)
        opened = time.perf_counter()
        plan = DrawPlan(as_sources([dataset]), seed=0)
        for draw in range(len(dataset)):
            source, index = plan(draw)
            source.get(index)
        end = time.perf_counter()
    where = "data", shape, "owl_fast"
    return [
        row(*where, "open", "rows/s", [len(dataset) / (opened - begin)]),
        row(*where, "read in a run's order", "rows/s", [len(dataset) / (end - opened)]),
        row(*where, "memory", "MB", [(peak.value - before) / 1e6]),
    ]


def _records() -> Iterator[dict[str, Any]]:
    """Conversations of about 700 bytes."""
    rng = random.Random(0)
    for number in range(ROWS):
        talk = [
            {"from": speaker, "value": " ".join(rng.choices(WORDS, k=20))} for speaker in ("human", "gpt") * 3
        ]
        talk[0]["value"] = "<image>\n" + talk[0]["value"]
        yield {"id": f"{number}", "image": f"{number % 1000}.jpg", "conversations": talk}


def _lines(folder: Path) -> str:
    path = folder / "talk.jsonl"
    with path.open("w") as file:
        file.writelines(json.dumps(record) + "\n" for record in _records())
    return str(path)


def _list(folder: Path) -> str:
    path = folder / "talk.json"
    with path.open("w") as file:
        for number, record in enumerate(_records()):
            file.write(("," if number else "[") + json.dumps(record))
        file.write("]")
    return str(path)


def _tars(folder: Path) -> str:
    rng = random.Random(0)
    picture = rng.randbytes(PICTURE_BYTES)
    for first in range(0, ROWS, SHARD_ROWS):
        with tarfile.open(folder / f"{first // SHARD_ROWS:05d}.tar", "w") as tar:
            for number in range(first, min(first + SHARD_ROWS, ROWS)):
                _add(tar, f"{number:09d}.jpg", picture)
                _add(tar, f"{number:09d}.txt", " ".join(rng.choices(WORDS, k=12)).encode())
    return f"{folder}/*.tar"


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
