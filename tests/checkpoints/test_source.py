"""What open_source finds at a path, and what it says when it finds nothing that runs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from owl_fast.checkpoints import load_model, open_source, save_model
from owl_fast.checkpoints.tensorfile import read_tensors, write_tensors
from owl_fast.errors import CheckpointError, OwlError
from tests.golden_data import Golden, assert_same_weights

GOLDEN = Golden("micro")
MICRO = GOLDEN.checkpoint
# What the tensors tell.
SIZES = {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "image_size", "patch_size"}
SIZES |= {"encoder_hidden_size"}


@pytest.fixture(scope="module")
def whole() -> dict[str, torch.Tensor]:
    """Every tensor of the micro model."""
    return {name: t for file in MICRO.glob("*.bin") for name, t in read_tensors(file).items()}


def test_a_folder_of_the_later_release() -> None:
    source = open_source(MICRO)
    assert source.config == load_model(MICRO).config
    assert not source.config.first_release
    assert not source.processor().rgb_first
    assert source.tokenizer().encode("</s>", literal=False) == [source.tokenizer().eos_id]


@pytest.mark.parametrize("ending", ["pth", "pt", "bin", "safetensors"])
def test_a_file_of_the_later_release(tmp_path: Path, whole: dict[str, torch.Tensor], ending: str) -> None:
    """Sizes come from the tensors; heads are those of the 7B model unless told."""
    path = tmp_path / f"weights.{ending}"
    write_tensors(path, whole)
    raw, config = json.loads((MICRO / "config.json").read_text()), open_source(MICRO).config
    untold = {
        section: {key: value for key, value in raw[section].items() if key not in SIZES}
        for section in ("vision_config", "visual_abstractor_config", "text_config")
    }
    told = open_source(path, config=untold)
    assert told.config == config
    assert_same_weights(load_model(told), load_model(MICRO))
    assert open_source(path).config.vision.num_attention_heads == 16
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: no such file"):
        told.tokenizer()
    shutil.copy(MICRO / "config.json", tmp_path)
    assert open_source(path).config == config


def test_a_config_replaces_what_the_folder_says(tmp_path: Path) -> None:
    told = open_source(MICRO, config={"vision_config": {"layer_norm_eps": 0.5, "hidden_size": None}})
    assert told.config.vision.layer_norm_eps == 0.5
    assert told.config.vision.hidden_size == open_source(MICRO).config.vision.hidden_size
    (tmp_path / "mine.json").write_text('{"text_config": {"rms_norm_eps": 0.25}}')
    assert open_source(MICRO, config=tmp_path / "mine.json").config.llama.rms_norm_eps == 0.25


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "no such file or folder"),
        (("model/notes.txt",), "no weights; wanted model.safetensors"),
        (
            ("model/instruction_tuned.pth", "model/pretrained.pth"),
            "instruction_tuned.pth, pretrained.pth: na",
        ),
    ],
    ids=["nothing", "no weights", "pth inside"],
)
def test_paths_that_are_no_model(tmp_path: Path, files: tuple[str, ...], message: str) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    with pytest.raises(CheckpointError, match=message):
        open_source(tmp_path / "model")


@pytest.mark.parametrize("name", ["x" * 5000, "\0", "\ud800"], ids=["long", "nul", "surrogate"])
def test_names_no_file_can_have(name: str) -> None:
    with pytest.raises(CheckpointError, match="no such file or folder"):
        open_source(name)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04"])
def test_files_that_are_no_model(tmp_path: Path, content: bytes) -> None:
    for name in ("a.pth", "a.safetensors", "a.gguf"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            open_source(tmp_path / name)


def test_a_state_dict_of_something_else(tmp_path: Path) -> None:
    write_tensors(tmp_path / "other.pth", {"fc.weight": torch.zeros(2, 2)})
    with pytest.raises(CheckpointError, match=r"other\.pth: there is no tensor .*; wanted a whole mPLUG-Owl"):
        open_source(tmp_path / "other.pth")


@pytest.mark.parametrize(
    "raw", [{"vision_config": 3}, {"text_config": {"hidden_act": "relu"}}, {"model_type": 7}]
)
def test_a_config_that_makes_no_sense_is_named(tmp_path: Path, raw: dict[str, object]) -> None:
    shutil.copytree(MICRO, tmp_path / "model")
    (tmp_path / "model/config.json").write_text(json.dumps(raw))
    with pytest.raises(OwlError, match=r"model/config\.json: " + next(iter(raw))):
        open_source(tmp_path / "model")


def test_pictures_of_another_size_are_noticed(tmp_path: Path) -> None:
    shutil.copytree(MICRO, tmp_path / "model")
    (tmp_path / "model/preprocessor_config.json").write_text('{"size": 8}')
    with pytest.raises(CheckpointError, match="pictures of 8 pixels a side, the vision tower takes"):
        open_source(tmp_path / "model").processor()


# --- files and names made to harm ---


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "device.bin").symlink_to("/dev/zero")
    (tmp_path / "model").mkdir()
    os.mkfifo(tmp_path / "model/model.safetensors")
    os.mkfifo(tmp_path / "model/adapter_config.json")
    for name in ("pipe.pth", "device.bin", "model"):
        with pytest.raises(CheckpointError, match="not a regular file"):
            open_source(tmp_path / name)


@pytest.mark.parametrize("name", ["\0", "x" * 5000, "a/\ud800", "", None, 7, ["a"]], ids=repr)
def test_an_adapter_with_a_base_no_file_can_be(tmp_path: Path, name: object) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": name}))
    with pytest.raises(CheckpointError, match="is no model on this machine"):
        open_source(tmp_path)


@pytest.mark.parametrize("changed", ["model.safetensors", "config.json", "tokenizer.model"])
def test_a_file_by_itself_is_what_the_manifest_beside_it_says(tmp_path: Path, changed: str) -> None:
    save_model(load_model(MICRO), tmp_path / "saved", side_files=MICRO)
    weights = tmp_path / "saved/model.safetensors"
    assert_same_weights(load_model(weights), load_model(MICRO))
    data = bytearray((tmp_path / "saved" / changed).read_bytes())
    data[-9] ^= 1
    (tmp_path / "saved" / changed).write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"{changed}: its SHA-256 is not the one"):
        load_model(weights)
    shutil.copy(weights, tmp_path / "saved/mine.safetensors")  # not in the list: as if it lay elsewhere
    if changed != "config.json":
        load_model(tmp_path / "saved/mine.safetensors")


@pytest.mark.parametrize(
    "name", ["config.json", "preprocessor_config.json", "owl_manifest.json", "tokenizer.model"]
)
@pytest.mark.parametrize("kind", ["pipe", "device", "lost link", "folder"])
def test_what_cannot_be_read_is_not_taken_for_absent(tmp_path: Path, name: str, kind: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(MICRO, model)
    (model / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(model / name)
    elif kind == "folder":
        (model / name).mkdir()
    else:
        (model / name).symlink_to("/dev/zero" if kind == "device" else "nowhere")
    # A link to nowhere: half a download, such as a cache without its blobs. A folder may hold a tokenizer.
    absent = kind == "lost link" or (kind, name) == ("folder", "tokenizer.model")
    said = "no such file" if absent else "not a regular file"

    def read_all(path: Path) -> None:
        source = open_source(path)
        source.tokenizer()
        source.processor()

    with pytest.raises(CheckpointError, match=rf"{name}.*: {said}"):
        read_all(model)
