"""`shard`: any data as webdataset tars, whole or not at all."""

from __future__ import annotations

import io
import json
import re
import tarfile
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from tqdm import tqdm

from owl_fast.checkpoints.writer import check_new, whole_folder
from owl_fast.data.task import Task
from owl_fast.errors import DataError, ImageError, ParameterError, Reason
from owl_fast.images import load_image
from owl_fast.picture_files import picture_bytes
from owl_fast.training.bad_rows import leave_out_bad_rows
from owl_fast.training.datasets import Dataset
from owl_fast.training.order import Shuffle
from owl_fast.training.sample import Caption, Sample

MIB = 1 << 20
EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}
_SURROGATE = re.compile("[\ud800-\udfff]")  # alone, as JSON lets it through: no UTF-8, as for the tokenizer


def write_shards(task: Task, out: str, size: int, shuffle: bool, cap: float | None) -> int:
    """Write OUT/00000.tar and so on, each begun when the last one has reached `size` MiB.

    cap: share of bad rows that are left out; None: the first one ends it. OUT appears whole or not at all.
    """
    if size < 1:
        raise ParameterError(f"--shard-mb {size}: wanted 1 or more")
    folder = Path(out)
    check_new(folder)
    datasets = task.datasets
    if cap is not None:
        datasets = [
            leave_out_bad_rows(dataset, task.use, cap=cap, workers=task.workers, progress=task.progress)
            for dataset in datasets
        ]
    total = sum(map(len, datasets))
    with whole_folder(folder) as target:
        samples = tqdm(
            _samples(datasets, shuffle), total=total, desc="writing", unit="row", disable=not task.progress
        )
        count = _write(target, iter(samples), size * MIB)
    print(f"{folder}: {total:,} samples in {count} file(s)")
    for dataset in datasets:
        for reason, count in dataset.describe().get("left_out", {}).items():
            print(f"left out of {dataset.name}: {count} x {reason}")
    return 0


def _samples(datasets: list[Dataset], shuffle: bool) -> Iterator[Sample | Caption]:
    """All samples, one dataset after the other or in a fixed random order."""
    ends = list(accumulate(map(len, datasets)))
    order = Shuffle(ends[-1], seed=0) if shuffle else range(ends[-1])
    for place in range(ends[-1]):
        which = bisect_right(ends, order[place])
        yield datasets[which][order[place] - (ends[which] - len(datasets[which]))]


def members(sample: Sample | Caption) -> dict[str, bytes]:
    """Extension -> content of a sample's members; DataError when a picture cannot be read."""
    if isinstance(sample, Caption):
        kind, data = _picture(sample.image, sample.record)
        return {kind: data, "txt": _SURROGATE.sub("\ufffd", sample.text).encode()}
    pictures: dict[str, bytes] = {}
    for number, source in enumerate(sample.images):
        kind, data = _picture(source, sample.record)
        pictures[f"{number}.{kind}"] = data
    told = {"messages": list(sample.messages), "images": list(pictures)}
    return {"json": json.dumps(told).encode(), **pictures}


def _picture(source: Any, record: str) -> tuple[str, bytes]:
    """Extension and bytes of an encoded picture, as they are."""
    try:
        data = picture_bytes(source)
        format = load_image(data, pixels=False).format
    except ImageError as error:
        raise DataError(f"{record}: {error}", Reason.BROKEN_PICTURE) from None
    return EXTENSIONS[str(format)], data


def _write(folder: Path, samples: Iterator[Sample | Caption], shard_bytes: int) -> int:
    """Tar files of these samples; their number. The same samples give the same bytes."""
    count = number = 0
    sample = next(samples, None)
    while sample is not None:
        with tarfile.open(folder / f"{count:05d}.tar", "w") as tar:
            while sample is not None and tar.offset < shard_bytes:
                for extension, data in members(sample).items():
                    member = tarfile.TarInfo(f"{number:09d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                number += 1
                sample = next(samples, None)
        count += 1
    return count
