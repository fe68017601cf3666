"""Quantized while loading, written, and read again; what does not fit is named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from owl_fast import ops
from owl_fast.checkpoints import load_model, save_model, tensorfile
from owl_fast.checkpoints.manifest import MANIFEST
from owl_fast.checkpoints.names import packed_views, views
from owl_fast.checkpoints.safetensors_header import safetensors_places
from owl_fast.checkpoints.source import Source, open_source
from owl_fast.checkpoints.tensorfile import open_tensors
from owl_fast.config import Quantization
from owl_fast.errors import CheckpointError, UnsupportedError
from owl_fast.models.owl import Owl
from owl_fast.quantization.whole import quantize_
from tests.golden_data import FirstRelease, Golden, VideoRelease

INT4, BOTH = Quantization("int4", None, 16), Quantization("int8", "int8")
ALL = [Quantization("int8"), INT4, BOTH]
HEAD = "language_model.lm_head.weight"
UP = "language_model.model.layers.0.mlp.up_proj.weight"


def assert_same_tensors(model: Owl, other: Owl) -> None:
    ours, theirs = views(model), views(other)
    assert ours.keys() == theirs.keys()
    assert model.config == other.config
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


SOURCES: dict[str, Callable[[], Source]] = {
    "micro": lambda: open_source(Golden("micro").checkpoint),
    "tiny": lambda: open_source(Golden("tiny").checkpoint),
    "first release": FirstRelease().source,
    "updates merged": lambda: FirstRelease().source(FirstRelease().wrapped),
    "video": lambda: open_source(VideoRelease().checkpoint),
}


@pytest.mark.parametrize("quantization", ALL, ids=str)
@pytest.mark.parametrize("name", SOURCES)
def test_loading_gives_what_quantizing_the_loaded_model_gives(name: str, quantization: Quantization) -> None:
    """Also where projections are interleaved; and a block of rows is as good as the whole."""
    source = SOURCES[name]()
    whole = load_model(source, dtype=torch.float32)
    quantize_(whole, quantization)
    assert_same_tensors(load_model(source, dtype=torch.float32, quantization=quantization), whole)


def test_blocks_of_few_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = load_model(FirstRelease().source(), quantization=BOTH)
    monkeypatch.setattr("owl_fast.checkpoints.packing.AT_ONCE", 100)
    assert_same_tensors(load_model(FirstRelease().source(), quantization=BOTH), wanted)


@pytest.mark.parametrize("quantization", ALL, ids=str)
@pytest.mark.parametrize("name", ["micro", "first release", "video"])
def test_a_written_folder_is_read_bit_for_bit(tmp_path: Path, name: str, quantization: Quantization) -> None:
    model = load_model(SOURCES[name](), quantization=quantization)
    save_model(model, tmp_path / "a", shard_bytes=20_000)
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 2
    again = load_model(tmp_path / "a")
    assert_same_tensors(again, model)
    assert_same_tensors(load_model(tmp_path / "a", quantization=quantization), model)
    raw = json.loads((tmp_path / "a/config.json").read_text())["quantization"]
    assert (raw["scheme"], raw["vision"]) == (quantization.scheme, quantization.vision)
    save_model(again, tmp_path / "b", shard_bytes=20_000)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_weights_are_named_by_the_checkpoint(tmp_path: Path) -> None:
    save_model(load_model(SOURCES["micro"](), quantization=INT4), tmp_path / "a")
    with tensorfile.open_tensors(tmp_path / "a/model.safetensors") as file:
        names = set(file.infos)
    for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
        name = f"language_model.model.layers.0.self_attn.{part}.weight"
        assert {f"{name}.q", f"{name}.scale"} <= names
        assert name not in names
    assert "language_model.model.embed_tokens.weight" in names


def test_dense_again_where_weights_change(tmp_path: Path) -> None:
    model = load_model(SOURCES["micro"](), quantization=INT4)
    save_model(model, tmp_path / "a", change=lambda name, tensor: tensor + 1 if name == HEAD else tensor)
    again = load_model(tmp_path / "a")
    assert again.config == open_source(Golden("micro").checkpoint).config
    for name, weight in packed_views(model).items():
        wanted = ops.dequantize(weight, torch.float32) + (name == HEAD)
        assert torch.equal(views(again)[name], wanted), name


def test_pickles_hold_no_quantized_weights(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="written as safetensors alone"):
        save_model(load_model(SOURCES["micro"](), quantization=INT4), tmp_path / "a", format="bin")


# --- what does not fit ---


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Written, and without its manifest, so that what is changed below is not found by its hash."""
    save_model(load_model(SOURCES["micro"](), quantization=INT4), tmp_path / "a")
    (tmp_path / "a" / MANIFEST).unlink()
    return tmp_path / "a"


def spoil(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = tensorfile.read_tensors(folder / "model.safetensors")
    change(tensors)
    tensorfile.write_tensors(folder / "model.safetensors", tensors)


def reconfigure(folder: Path, **changes: object) -> None:
    raw = json.loads((folder / "config.json").read_text())
    raw["quantization"] |= changes
    (folder / "config.json").write_text(json.dumps(raw))


CHANGES: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "no scale": (lambda t: t.pop(f"{UP}.scale"), rf"1 tensors are missing .*: {UP}.scale"),
    "no codes": (lambda t: t.pop(f"{HEAD}.q"), rf"1 tensors are missing .*: {HEAD}.q"),
    "a dense one": (lambda t: t.update({HEAD: torch.zeros(300, 48)}), rf"tensor {HEAD} has no place"),
    "other groups": (
        lambda t: t.update({f"{UP}.scale": t[f"{UP}.scale"][:, :1].clone()}),
        rf"tensor {UP}.scale has shape \(\d+, 1\); the config asks for \(\d+, 3\)",
    ),
    "fewer rows": (
        lambda t: t.update({f"{UP}.q": t[f"{UP}.q"][1:].clone()}),
        rf"tensor {UP}.q has shape",
    ),
    "other codes": (
        lambda t: t.update({f"{UP}.q": t[f"{UP}.q"].view(torch.int8)}),
        rf"tensor {UP}.q has dtype torch.int8; wanted torch.uint8",
    ),
    "other scales": (
        lambda t: t.update({f"{UP}.scale": t[f"{UP}.scale"].float()}),
        rf"tensor {UP}.scale has dtype torch.float32; wanted torch.float16",
    ),
    "no number": (
        lambda t: t[f"{UP}.scale"].view(-1)[2:3].fill_(float("nan")),
        rf"tensor {UP}.scale holds NaN",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_spoilt_weights_are_refused_by_name(folder: Path, case: str) -> None:
    change, said = CHANGES[case]
    spoil(folder, change)
    with pytest.raises(CheckpointError, match=said) as caught:
        load_model(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"group": 32}, CheckpointError, r"\.scale has shape \(\d+, \d\); the config asks for"),
        ({"group": 15}, CheckpointError, r"config.json: quantization group 15: wanted an even number"),
        ({"group": 0}, CheckpointError, r"group 0: wanted"),
        ({"group": "16"}, CheckpointError, r"quantization.group must be int"),
        ({"scheme": "int3"}, UnsupportedError, r"scheme 'int3'; this engine runs int8, int4"),
        ({"scheme": None}, CheckpointError, r"weight\.(q|scale) has no place in the model"),
        ({"scheme": "int8"}, CheckpointError, r"\.(q|scale) has shape"),
        ({"vision": "int4"}, UnsupportedError, r"vision 'int4'; this engine runs int8"),
        ({"vision": "int8"}, CheckpointError, r"tensor vision_model.* has no place in the model"),
    ],
    ids=str,
)
def test_a_config_that_says_otherwise_is_refused(
    folder: Path, changes: dict[str, object], kind: type[Exception], said: str
) -> None:
    reconfigure(folder, **changes)
    with pytest.raises(kind, match=said):
        load_model(folder)


def test_truncated_files_are_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    places = safetensors_places(path, memoryview(data))
    last = re.escape(max(places, key=lambda name: places[name].start))
    for size, where in ((len(data) - 1, rf"its tensors end at \d+ \(tensor {last}\)"), (7, "cut short")):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=f"{path}: .*{where}"):
            load_model(folder)


def test_a_flipped_bit_is_found_by_the_manifest(tmp_path: Path) -> None:
    save_model(load_model(SOURCES["micro"](), quantization=INT4), tmp_path / "a")
    path = tmp_path / "a/model.safetensors"
    with open_tensors(path) as file:
        values = file.read(f"{UP}.q").numpy().tobytes()
    data = bytearray(path.read_bytes())
    data[data.index(values) + 5] ^= 4
    path.write_bytes(data)
    said = rf"{path}: its SHA-256 is not the one .* gives: tensor {UP}\.q is damaged"
    with pytest.raises(CheckpointError, match=said):
        load_model(tmp_path / "a")


def test_another_quantization_of_quantized_weights_is_refused(folder: Path) -> None:
    for other in (Quantization("int8"), Quantization("int4", None, 32), Quantization("int4", "int8", 16)):
        with pytest.raises(UnsupportedError, match=r"holds its weights as int4-g16, and .* is asked for"):
            load_model(folder, quantization=other)


def test_weights_that_are_no_numbers_are_never_quantized(tmp_path: Path) -> None:
    source = tmp_path / "a"
    save_model(load_model(SOURCES["micro"]()), source)
    (source / MANIFEST).unlink()
    spoil(source, lambda t: t[UP].view(-1)[5:6].fill_(float("inf")))
    with pytest.raises(CheckpointError, match=f"tensor {UP} holds NaN or infinity"):
        load_model(source, quantization=INT4, allow_nonfinite=True)


def test_weights_quantized_by_others_are_refused(tmp_path: Path) -> None:
    save_model(load_model(SOURCES["micro"]()), tmp_path / "a")
    (tmp_path / "a" / MANIFEST).unlink()
    path = tmp_path / "a/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"bits": 4}}))
    with pytest.raises(UnsupportedError, match="quantized by another library"):
        open_source(tmp_path / "a")
