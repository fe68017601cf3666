"""Tars of img2dataset: captions from the text or the json, and conversations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from owl_fast.errors import DataError, Reason
from owl_fast.training.sample import Caption
from tests.training.data_files import open_file, picture_bytes, read_all, read_sample, turns, write_tar

PICTURE = picture_bytes()


def test_captions(tmp_path: Path) -> None:
    told = json.dumps({"caption": "from json", "url": "x"}).encode()
    members = {
        "000.jpg": PICTURE,
        "000.json": told,
        "000.txt": "a böat\n".encode(),
        "dir/001.v2.PNG": b"another extension",
        "dir/001.PNG": PICTURE + b"1",
        "dir/001.json": told,
        "README": b"no sample",
        ".hidden.jpg": PICTURE,
    }
    path = write_tar(tmp_path / "a.tar", members)
    assert read_all(path) == [
        Caption(PICTURE, "a böat", record=f"{path}:000"),
        Caption(PICTURE + b"1", "from json", record=f"{path}:dir/001"),
    ]


def test_a_conversation(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": [{"type": "image", "image": 0}, {"type": "text", "text": "?"}]},
        {"role": "assistant", "content": "A boat."},
    ]
    told = json.dumps({"messages": messages, "images": ["0.png"]}).encode()
    sample = read_sample(write_tar(tmp_path / "a.tar", {"7.json": told, "7.0.png": PICTURE}))
    assert turns(sample) == [(m["role"], m["content"]) for m in messages]
    assert sample.images == [PICTURE]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"b.txt": b"words"}, Reason.MISSING_PICTURE),
        ({"b.jpg": PICTURE, "b.png": PICTURE, "b.txt": b"words"}, Reason.MISSING_PICTURE),
        ({"b.jpg": PICTURE}, Reason.NO_ANSWER),
        ({"b.jpg": PICTURE, "b.txt": b" "}, Reason.NO_ANSWER),
        ({"b.jpg": PICTURE, "b.json": b'{"caption": null}'}, Reason.NO_ANSWER),
        ({"b.jpg": PICTURE, "b.txt": b"\xff"}, Reason.MALFORMED),
        ({"b.jpg": PICTURE, "b.json": b"{"}, Reason.NOT_JSON),
        ({"b.json": b'{"messages": [], "images": ["0.jpg"]}'}, Reason.MISSING_PICTURE),
        ({"b.json": b'{"messages": 3}'}, Reason.WRONG_KEYS),
    ],
)
def test_bad_samples(members: dict[str, bytes], reason: Reason, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.jpg": PICTURE, "a.txt": b"fine", **members})
    with pytest.raises(DataError) as error:
        open_file(path)[1]
    assert str(error.value).startswith(f"{path}:b")
    assert error.value.reason is reason
