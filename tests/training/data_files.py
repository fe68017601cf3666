"""Data files of every kind, as small as they can be."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from PIL import Image

from owl_fast.training.datasets import Dataset, ReadOptions, open_dataset
from owl_fast.training.sample import Caption, Sample


def picture_bytes(color: int = 0, format: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (6, 5), (color % 256, color // 256, 7)).save(out, format)
    return out.getvalue()


def write_picture(path: Path, color: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture_bytes(color, "JPEG" if path.suffix == ".jpg" else "PNG"))
    return path


def write_lines(path: Path, *rows: object) -> Path:
    """Rows as JSON lines; a string is a line as it is."""
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def write_list(path: Path, *rows: object, indent: int | None = None) -> Path:
    path.write_text(json.dumps(rows, indent=indent), encoding="utf-8")
    return path


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def open_file(path: Path, **options: Any) -> Dataset:
    return open_dataset(str(path), ReadOptions(**options))


def read_all(path: Path, **options: Any) -> list[Sample | Caption]:
    dataset = open_file(path, **options)
    return [dataset[index] for index in range(len(dataset))]


def read_sample(path: Path, **options: Any) -> Sample:
    """The only row, a conversation."""
    (sample,) = read_all(path, **options)
    assert isinstance(sample, Sample)
    return sample


def turns(sample: Sample) -> list[tuple[str, Any]]:
    return [(message["role"], message["content"]) for message in sample.messages]
