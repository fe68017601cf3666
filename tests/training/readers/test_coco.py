"""COCO's captions: one sample per annotation, with the picture of its image."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from owl_fast.errors import DataError, Reason
from owl_fast.training.sample import Caption
from tests.training.data_files import open_file, read_all

IMAGES = [{"id": 9, "file_name": "nine.jpg"}, {"id": 3, "file_name": "three.jpg"}]
GOOD = [
    {"image_id": 3, "id": 1, "caption": "A three. "},
    {"image_id": 9, "id": 2, "caption": "A nine ]}."},
    {"image_id": 3, "id": 5, "caption": "Again."},
]


def write(path: Path, annotations: list[object], indent: int | None = None) -> Path:
    extra = {"info": {"year": 2014, "lists": [[1], [2]]}, "licenses": [{"id": 1}], "empty": []}
    path.write_text(json.dumps({**extra, "annotations": annotations, "images": IMAGES}, indent=indent))
    return path


@pytest.mark.parametrize("indent", [None, 2])
def test_captions(indent: int | None, tmp_path: Path) -> None:
    path = write(tmp_path / "captions.json", GOOD, indent)
    first, second, third = read_all(path, pictures=tmp_path / "train")
    assert first == Caption(tmp_path / "train/three.jpg", "A three.", record=first.record)
    assert (second.image, second.text) == (tmp_path / "train/nine.jpg", "A nine ]}.")
    assert (third.image, third.text) == (tmp_path / "train/three.jpg", "Again.")


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        ({"image_id": 4, "caption": "x"}, Reason.MISSING_PICTURE),
        ({"caption": "x"}, Reason.MISSING_PICTURE),
        ({"image_id": 3}, Reason.WRONG_KEYS),
        ({"image_id": 3, "caption": ""}, Reason.NO_ANSWER),
    ],
)
def test_bad_annotations(annotation: object, reason: Reason, tmp_path: Path) -> None:
    path = write(tmp_path / "captions.json", [GOOD[0], annotation], indent=1)
    with pytest.raises(DataError) as error:
        open_file(path)[1]
    assert error.value.reason is reason
    line = path.read_text().splitlines()[int(str(error.value).removeprefix(f"{path}:").split(":")[0]) - 1]
    assert line == "  {"
