"""The manifest of our own folders: every flipped bit and every other file is found."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch

from owl_fast import lora
from owl_fast.checkpoints import load_model, read_tensors, save_model
from owl_fast.checkpoints.load import empty_model
from owl_fast.checkpoints.manifest import MANIFEST, Manifest, write_manifest
from owl_fast.checkpoints.tensorfile import open_tensors, write_tensors
from owl_fast.config import OwlConfig
from owl_fast.errors import CheckpointError, OwlError
from tests.golden_data import Golden

GOLDEN = Golden("micro")
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The micro model and its adapter as we write them."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    model = GOLDEN.fresh_model()
    save_model(model, folder, side_files=GOLDEN.checkpoint)
    config = lora.load_adapter(model, GOLDEN.adapter)
    lora.save_adapter(model, folder / "adapter", config, base="x", extra=["abstractor.vit_eos"])
    return folder


@pytest.fixture
def model_folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def load_both(folder: Path) -> None:
    load_model(folder)
    lora.load_adapter(empty_model(OwlConfig.from_file(folder / "config.json")), folder / "adapter")


def test_all_files_are_listed(saved: Path) -> None:
    for folder in (saved, saved / "adapter"):
        files = {path.name for path in folder.iterdir() if path.is_file()} - {MANIFEST}
        listed = json.loads((folder / MANIFEST).read_text())["files"]
        assert listed.keys() == files
        for name in files:
            assert listed[name]["bytes"] == (folder / name).stat().st_size
    assert {WEIGHTS, "config.json", "tokenizer.model"} <= {path.name for path in saved.iterdir()}
    load_both(saved)


def check_flips(folder: Path, count: int) -> None:
    rng = random.Random(0)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert len(files) >= 10
    for number in range(count):
        path = files[number % len(files)]
        data = path.read_bytes()
        bit = rng.randrange(8 * len(data))
        path.write_bytes(data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :])
        with pytest.raises(OwlError):
            load_both(folder)
        path.write_bytes(data)
    load_both(folder)


def test_every_flipped_bit_is_found(model_folder: Path) -> None:
    check_flips(model_folder, 24)


@pytest.mark.slow
def test_every_one_of_many_flipped_bits_is_found(model_folder: Path) -> None:
    check_flips(model_folder, 1000)


def test_the_message_names_the_file_and_what_came(model_folder: Path) -> None:
    path = model_folder / WEIGHTS
    data = path.read_bytes()
    path.write_bytes(data[:-5] + b"\x01" + data[-4:])
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS}: its SHA-256 is not the one {MANIFEST} gives"):
        load_model(model_folder)
    path.write_bytes(data[:-5])
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS}: {len(data) - 5} bytes; .* says {len(data)}"):
        load_model(model_folder)
    path.unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        load_model(model_folder)


def test_files_that_no_loader_reads_are_compared_too(model_folder: Path) -> None:
    (model_folder / "generation_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"generation_config\.json: no such file"):
        load_model(model_folder)


def test_weights_put_beside_ours_are_refused(model_folder: Path) -> None:
    listed = json.loads((model_folder / MANIFEST).read_text())
    del listed["files"][WEIGHTS], listed["sha256"]
    (model_folder / MANIFEST).write_text(json.dumps(listed))
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS}: not named by {MANIFEST}"):
        load_model(model_folder)


def test_notes_may_be_added_and_edited(model_folder: Path) -> None:
    (model_folder / "README.md").write_text("first")
    write_manifest(model_folder)
    (model_folder / "README.md").write_text("second")
    (model_folder / "notes.txt").write_text("mine")
    load_model(model_folder)


def test_a_folder_without_one_is_read(model_folder: Path) -> None:
    (model_folder / MANIFEST).unlink()
    assert Manifest.read(model_folder) is None
    load_model(model_folder)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"files": []}',
        '{"files": {"model.safetensors": 1}}',
        '{"files": {"model.safetensors": {"bytes": "1", "sha256": ""}}}',
        '{"files": {"../x": {"bytes": 1, "sha256": ""}}}',
        '{"files": {"..": {"bytes": 1, "sha256": ""}}}',
        '{"files": {"\\u0000": {"bytes": 1, "sha256": ""}}}',
        '{"files": {"config.json": {"bytes": 1, "sha256": ""}}}',
        '{"files": {}, "sha256": "0"}',
        '{"files": {}, "sha255": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}',
    ],
)
def test_a_manifest_that_is_none(model_folder: Path, text: str) -> None:
    (model_folder / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError):
        load_model(model_folder)


@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
def test_values_are_compared_as_they_are_read(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x{ending}"
    write_tensors(path, {"a": torch.zeros(1000), "b": torch.ones(1000)})
    write_manifest(tmp_path)
    data = path.read_bytes()
    at = data.index(torch.ones(1000).numpy().tobytes())
    path.write_bytes(data[: at + 40] + b"\x01" + data[at + 41 :])
    with pytest.raises(CheckpointError, match="SHA-256"):
        read_tensors(path)
    with pytest.raises(CheckpointError, match="SHA-256"), open_tensors(path) as file:
        file.read("a")
    with open_tensors(path) as file:  # listing reads no values
        assert list(file.infos) == ["a", "b"]


def test_another_error_is_not_hidden_by_the_check(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    write_tensors(path, {"a": torch.zeros(1000)})
    (tmp_path / MANIFEST).write_text(
        json.dumps({"files": {"x.bin": {"bytes": path.stat().st_size, "sha256": "0"}}})
    )

    def read_and_fail() -> None:
        with open_tensors(path) as file:
            file.read("a")
            raise KeyError

    with pytest.raises(KeyError):
        read_and_fail()
