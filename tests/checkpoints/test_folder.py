"""Which files of a folder are its weights: one set, every tensor once, nothing left over."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from owl_fast.checkpoints.folder import WeightFolder
from owl_fast.checkpoints.tensorfile import write_tensors
from owl_fast.errors import CheckpointError

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write_tensors(tmp_path / FIRST, {"a": torch.zeros(2), "b": torch.ones(3)})
    write_tensors(tmp_path / SECOND, {"c": torch.full((4,), 2.0)})
    write_index(tmp_path, {"a": FIRST, "b": FIRST, "c": SECOND})
    return tmp_path


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 36}, "weight_map": weight_map}))


def test_shards_are_one_set_of_tensors(sharded: Path) -> None:
    folder = WeightFolder.open(sharded)
    assert {name: entry.file for name, entry in folder.entries.items()} == {
        "a": FIRST,
        "b": FIRST,
        "c": SECOND,
    }
    assert folder.nbytes == 36
    assert {name: tensor.tolist() for name, tensor in folder.tensors()} == {
        "a": [0] * 2,
        "b": [1] * 3,
        "c": [2] * 4,
    }


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_single_file_needs_no_index(tmp_path: Path, file: str) -> None:
    write_tensors(tmp_path / file, {"a": torch.zeros(2)})
    assert WeightFolder.open(tmp_path).files == (file,)


def test_shards_are_released_one_by_one(sharded: Path) -> None:
    def mapped() -> set[str]:
        return {line.split("/")[-1].strip() for line in open("/proc/self/maps") if str(sharded) in line}

    seen = []
    for _name, tensor in WeightFolder.open(sharded).tensors():
        tensor.sum()
        seen.append(mapped())
        del tensor
    assert seen == [{FIRST}, {FIRST}, {SECOND}]


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": FIRST, "c": SECOND}, f"{FIRST}: holds tensor b, but {INDEX} does not list it"),
        ({"a": FIRST, "b": SECOND, "c": SECOND}, f"{FIRST}: holds tensor b, but .* places it in {SECOND}"),
        ({"a": FIRST, "b": FIRST, "c": SECOND, "d": SECOND}, f"{SECOND}: tensor d is missing"),
        ({"a": FIRST, "b": FIRST}, f"{SECOND}: not named by {INDEX}"),
        ({"a": FIRST, "b": FIRST, "c": "model-3.safetensors"}, r"model-3\.safetensors is not in the .* c"),
        ({"a": FIRST, "b": FIRST, "c": f"../{SECOND}"}, r"tensor 'c' is said to be in '\.\./model"),
        ({"a": FIRST, "b": FIRST, "c": f"/x/{SECOND}"}, "tensor 'c' is said to be in"),
        ({"a": FIRST, "b": FIRST, "c": f"x\\{SECOND}"}, "tensor 'c' is said to be in"),
        ({"a": FIRST, "b": FIRST, "c": "pytorch_model.bin"}, "and a .safetensors file of the same folder"),
        ({"a": FIRST, "b": FIRST, "c": 2}, "tensor 'c' is said to be in 2"),
        ({"a": FIRST, "b": FIRST, "\x1b[2J": SECOND}, r"tensor '\\x1b\[2J' is said"),
        ({}, "filled weight_map"),
        ([FIRST], "filled weight_map"),
    ],
    ids=["unused", "other-file", "missing", "file-unused", "file-missing", "parent", "absolute", "backslash",
         "other-format", "number", "escape", "empty", "list"],
)  # fmt: skip
def test_an_index_that_does_not_fit(sharded: Path, weight_map: object, message: str) -> None:
    write_index(sharded, weight_map)
    with pytest.raises(CheckpointError, match=message):
        WeightFolder.open(sharded)


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    write_tensors(sharded / SECOND, {"b": torch.ones(3), "c": torch.zeros(4)})
    with pytest.raises(CheckpointError, match=f"{SECOND}: holds tensor b, but {INDEX} places it in {FIRST}"):
        WeightFolder.open(sharded)


@pytest.mark.parametrize("spoilt", [FIRST, INDEX])
@pytest.mark.parametrize("kind", ["outside", "device", "pipe", "folder", "lost", "loop"])
def test_what_is_no_file_of_the_folder(sharded: Path, tmp_path_factory: Any, spoilt: str, kind: str) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / spoilt
    (sharded / spoilt).rename(elsewhere)
    if kind == "pipe":
        os.mkfifo(sharded / spoilt)
    elif kind == "folder":
        (sharded / spoilt).mkdir()
    else:
        targets = {"outside": elsewhere, "device": "/dev/zero", "lost": "nowhere", "loop": spoilt}
        (sharded / spoilt).symlink_to(targets[kind])
    with pytest.raises(CheckpointError, match=spoilt):
        WeightFolder.open(sharded)


def test_links_within_the_folder_and_in_the_cache_of_the_hub_are_followed(sharded: Path) -> None:
    (sharded / SECOND).rename(sharded / "moved")
    (sharded / SECOND).symlink_to("moved")
    assert len(WeightFolder.open(sharded).entries) == 3
    repository = sharded / "models--x--y"
    (repository / "snapshots/abc").mkdir(parents=True)
    (repository / "blobs").mkdir()
    for file in (FIRST, SECOND, INDEX):
        shutil.copy(sharded / file, repository / "blobs" / file)
        (repository / "snapshots/abc" / file).symlink_to(f"../../blobs/{file}")
    assert len(WeightFolder.open(repository / "snapshots/abc").entries) == 3
    # Many repositories hold their weights in both formats, and a tool may have fetched all there is.
    write_tensors(repository / "snapshots/abc/pytorch_model.bin", {"a": torch.zeros(2)})
    assert WeightFolder.open(repository / "snapshots/abc").files == (FIRST, SECOND)
    (repository / "snapshots/abc" / FIRST).unlink()
    (repository / "snapshots/abc" / FIRST).symlink_to(f"../../../{FIRST}")
    with pytest.raises(CheckpointError, match=f"{FIRST}: a link to .* outside the folder"):
        WeightFolder.open(repository / "snapshots/abc")


def test_an_endless_index(sharded: Path) -> None:
    write_index(sharded, {f"t{i:07d}": FIRST for i in range(120_000)})
    with pytest.raises(CheckpointError, match=rf"{INDEX}: \d+ bytes; wanted at most"):
        WeightFolder.open(sharded)


def test_a_key_twice_in_the_index(sharded: Path) -> None:
    text = (sharded / INDEX).read_text().replace('"a":', f'"c": "{FIRST}", "a":')
    (sharded / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match="'c' is listed twice"):
        WeightFolder.open(sharded)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, "\xff"], ids=lambda t: t[:4])
def test_an_index_that_is_not_json(sharded: Path, text: str) -> None:
    (sharded / INDEX).write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=INDEX):
        WeightFolder.open(sharded)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("model.safetensors", "several sets of weights"),
        ("pytorch_model.bin", "several sets of weights"),
        ("pytorch_model-00001-of-00001.bin", "a shard without its pytorch_model.bin.index.json"),
        ("model-00003-of-00003.safetensors", "model-00003-of-00003.safetensors: not named"),
    ],
)
def test_files_that_leave_a_doubt(sharded: Path, extra: str, message: str) -> None:
    write_tensors(sharded / extra, {"z": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=message):
        WeightFolder.open(sharded)


def test_shards_beside_a_single_file(sharded: Path) -> None:
    (sharded / INDEX).unlink()
    with pytest.raises(CheckpointError, match="a shard without its"):
        WeightFolder.open(sharded)
    write_tensors(sharded / "model.safetensors", {"z": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=f"{FIRST}: a shard beside model.safetensors"):
        WeightFolder.open(sharded)


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights"):
        WeightFolder.open(tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        WeightFolder.open(tmp_path / "absent")
