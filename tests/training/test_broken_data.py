"""Damaged files of every format: whatever is changed in them, DataErrors alone come out, and say where."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from owl_fast.errors import OwlError
from owl_fast.training.datasets import open_dataset
from owl_fast.training.readers.formats import FORMATS
from tests.training.data_files import picture_bytes, write_lines, write_list, write_tar

TALK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": 'A "boat"\\ [really]'}]
CHANGES = 40


def write_coco(path: Path) -> Path:
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in range(6)]
    annotations = [{"image_id": number, "caption": "words"} for number in range(6)]
    path.write_text(json.dumps({"images": images, "annotations": annotations}, indent=1))
    return path


def write_csv(path: Path) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["image", "caption"], *[["a.jpg", 'two\nlines, "quoted"']] * 6])
    return path


def write_parquet(path: Path) -> Path:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"image": [f"{number}.jpg" for number in range(6)], "caption": ["words"] * 6}
    parquet.write_table(arrow.table(columns), path, row_group_size=2)
    return path


def lines(**fields: Any) -> Callable[[Path], Path]:
    return lambda path: write_lines(path, *[fields] * 6)


FILES: dict[str, Callable[[Path], Path]] = {
    "original": lines(image=["a.jpg"], text="Human: <image>\nAI: x"),
    "llava": lambda path: write_list(path, *[{"image": "a.jpg", "conversations": TALK}] * 6, indent=1),
    "sharegpt": lines(conversations=TALK),
    "openai": lines(messages=[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]),
    "alpaca": lambda path: write_list(path, *[{"instruction": "x", "input": "", "output": "y"}] * 6),
    "baize": lambda path: write_list(path, *[{"topic": "t", "input": "[|Human|] x\n[|AI|] y\n"}] * 6),
    "webdataset": lambda path: write_tar(
        path, {f"{n}.{kind}": picture_bytes(n)[:70] for n in range(6) for kind in ("jpg", "txt")}
    ),
    "coco": write_coco,
    "owleval": lines(image="1.jpg", question_id=1, question="?", answer="!"),
    "columns": write_csv,
    "parquet": write_parquet,
}


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_give_data_errors(name: str, tmp_path: Path) -> None:
    damage(name, tmp_path, CHANGES)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_many_damaged_files_give_data_errors(name: str, tmp_path: Path) -> None:
    damage(name, tmp_path, 1000)


def damage(name: str, folder: Path, changes: int) -> None:
    whole = FILES[name](folder / "whole").read_bytes()
    assert open_dataset(str(folder / "whole")).format == name.replace("parquet", "columns")
    rng = random.Random(name)
    path = folder / "damaged"
    for _ in range(changes):
        path.write_bytes(damaged(whole, rng))
        dataset = attempt(lambda: open_dataset(str(path)), path)
        for index in range(0 if dataset is None else len(dataset)):
            attempt(lambda: dataset[index], path)  # noqa: B023


def attempt(read: Callable[[], Any], path: Path) -> Any:
    """What is read, or None for an error that names the file in one line."""
    try:
        return read()
    except OwlError as error:
        said = str(error)
    assert said.startswith((f"{path}:", "damaged: "))
    assert str(path) in said
    assert "\n" not in said
    return None


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, a piece taken out, doubled or cut off."""
    changed = bytearray(data)
    begin, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    match rng.randrange(4):
        case 0:
            for _ in range(rng.randrange(1, 4)):
                changed[rng.randrange(len(data))] = rng.choice([*b'"\\[]{},:\n\t\0', rng.randrange(256)])
        case 1:
            del changed[begin : min(end, begin + 40)]
        case 2:
            changed[begin:begin] = changed[begin : begin + 40]
        case 3:
            del changed[end:]
    return bytes(changed)


def test_every_format_is_damaged() -> None:
    assert set(FILES) - {"parquet"} == set(FORMATS)
