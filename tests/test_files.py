"""Small files from outside: regular, bounded, whole, every key once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from owl_fast.errors import CheckpointError
from owl_fast.files import MAX_JSON_BYTES, file_size, read_bytes, read_json


def test_what_is_there_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'{"a": {"b": 1}, "c": "\xc3\xa9"}')
    assert file_size(path) == len(read_bytes(path, 26)) == 26
    assert read_json(path) == {"a": {"b": 1}, "c": "é"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not readable as JSON"),
        (b"\xff", "not readable as JSON"),
        (b"\xef\xbb\xbf{}", "not readable as JSON"),
        (b'{"a": ' + b"[" * 100_000, "not readable as JSON"),
        (b'{"a": ' + b"1" * 10_000 + b"}", "not readable as JSON"),
        (b'{"a": {"b": 1, "b": 2}}', "'b' is listed twice"),
        (b"[1]", "expected a JSON object, got list"),
        (b" " * (MAX_JSON_BYTES + 1), f"{MAX_JSON_BYTES + 1} bytes; wanted at most {MAX_JSON_BYTES}"),
    ],
    ids=["empty", "bytes", "mark", "deep", "number", "twice", "list", "large"],
)
def test_what_is_no_object(tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_json(path)
    assert "x.json" in str(caught.value)
    assert len(str(caught.value)) < 500


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for path, message in (
        (tmp_path / "absent", "no such file"),
        (tmp_path, "not a regular file"),
        (tmp_path / "pipe", "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
        (tmp_path / "loop", "cannot be read"),
        ("a\0b", "cannot be read"),
        ("x" * 5000, "cannot be read"),
        ("/proc/self/maps", "wanted at most 10"),  # its size is said to be 0
    ):
        with pytest.raises(CheckpointError, match=message):
            read_bytes(path, 10)
