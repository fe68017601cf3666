"""State dicts wrapped by PEFT: every spelling and container gives the model with its updates merged."""

from __future__ import annotations

import copy
import functools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from owl_fast import lora
from owl_fast.checkpoints import load_model, open_source
from owl_fast.checkpoints.peft import PREFIX
from owl_fast.checkpoints.tensorfile import read_tensors, write_tensors
from owl_fast.errors import CheckpointError, OwlError, UnsupportedError
from owl_fast.models.owl import Owl
from tests.golden_data import Golden

GOLDEN = Golden("micro")
QUERY = "language_model.model.layers.0.self_attn.q_proj"
# Name of the weight that has an update, name of one of its halves: PEFT 0.2, 0.3 and later.
SPELLINGS = {
    "0.2": ("{0}.weight", "{0}.lora_{1}.weight"),
    "0.3": ("{0}.weight", "{0}.lora_{1}.default.weight"),
    "later": ("{0}.base_layer.weight", "{0}.lora_{1}.default.weight"),
    "named": ("{0}.base_layer.weight", "{0}.lora_{1}.stage2.weight"),
}


@functools.cache
def plain_tensors() -> dict[str, Tensor]:
    return {name: t for file in GOLDEN.checkpoint.glob("*.bin") for name, t in read_tensors(file).items()}


def wrapped_tensors(spelling: str = "0.3") -> dict[str, Tensor]:
    """The micro model and its adapter as one state dict."""
    weight, half = SPELLINGS[spelling]
    adapter = read_tensors(GOLDEN.adapter / "adapter_model.bin")
    updated = {name.removeprefix(PREFIX).partition(".lora_")[0] for name in adapter}
    tensors = {}
    for name, tensor in plain_tensors().items():
        module = name.removesuffix(".weight")
        tensors[PREFIX + (weight.format(module) if module in updated else name)] = tensor
    for name, tensor in adapter.items():
        module, _, rest = name.partition(".lora_")
        tensors[half.format(module, rest[0])] = tensor
    return tensors


@functools.cache
def merged() -> Owl:
    model = GOLDEN.fresh_model()
    lora.load_adapter(model, GOLDEN.adapter)
    lora.merge_(model)
    return model


def assert_close(model: Owl, other: Owl, tolerance: float = 1e-6) -> None:
    theirs = dict(other.named_parameters())
    assert dict(model.named_parameters()).keys() == theirs.keys()
    for name, parameter in model.named_parameters():
        assert (parameter.float() - theirs[name].float()).abs().max() <= tolerance, name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder without weights."""
    for name in ("config.json", "tokenizer.model", "preprocessor_config.json"):
        shutil.copy(GOLDEN.checkpoint / name, tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("spelling", "file"),
    [("0.2", "state.pth"), ("0.3", "pytorch_model.bin"), ("later", "state.safetensors"), ("named", "s.pt")],
)
def test_every_spelling_and_file(folder: Path, spelling: str, file: str) -> None:
    write_tensors(folder / file, wrapped_tensors(spelling))
    assert_close(load_model(folder / file), merged())


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_in_a_model_folder(folder: Path, file: str) -> None:
    write_tensors(folder / file, wrapped_tensors())
    assert_close(load_model(folder), merged())


@pytest.mark.parametrize(("stem", "ending"), [("model", "safetensors"), ("pytorch_model", "bin")])
def test_in_shards_with_halves_elsewhere(folder: Path, stem: str, ending: str) -> None:
    tensors = wrapped_tensors()
    halves = {name for name in tensors if ".lora_" in name}
    first, second = (f"{stem}-{i:05d}-of-00002.{ending}" for i in (1, 2))
    shards = {
        first: {n: t for n, t in tensors.items() if n not in halves},
        second: {n: t for n, t in tensors.items() if n in halves},
    }
    for file, part in shards.items():
        write_tensors(folder / file, part)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))
    assert_close(load_model(folder), merged())
    if ending == "bin":
        data = bytearray((folder / second).read_bytes())
        data[data.index(tensors[min(halves)].numpy().tobytes()) + 2] ^= 1
        (folder / second).write_bytes(data)
        with pytest.raises(CheckpointError, match=rf"{second}: tensor .*lora_.* is damaged"):
            load_model(folder)


def test_updates_that_are_no_numbers(folder: Path) -> None:
    tensors = wrapped_tensors()
    name = next(name for name in tensors if ".lora_B" in name)
    tensors[name] = tensors[name].clone()
    tensors[name][0, 0] = float("inf")
    write_tensors(folder / "state.pth", tensors)
    with pytest.raises(CheckpointError, match=r"state\.pth: tensor .*weight holds NaN or infinity"):
        load_model(folder / "state.pth")
    load_model(folder / "state.pth", allow_nonfinite=True)


def test_a_training_folder_without_config(tmp_path: Path) -> None:
    """What the original's training with LoRA leaves: pytorch_model.bin and nothing that describes it."""
    write_tensors(tmp_path / "pytorch_model.bin", wrapped_tensors())
    raw = json.loads((GOLDEN.checkpoint / "config.json").read_text())
    assert_close(load_model(open_source(tmp_path, config=raw)), merged())


def test_wrapping_without_updates(folder: Path) -> None:
    write_tensors(folder / "state.pth", {PREFIX + name: tensor for name, tensor in plain_tensors().items()})
    assert_close(load_model(folder / "state.pth"), GOLDEN.fresh_model(), 0.0)
    with pytest.raises(UnsupportedError, match=r"lora_alpha 8 came, but no weight has a low-rank update"):
        open_source(folder / "state.pth", lora_alpha=8)


def test_rounded_once(folder: Path) -> None:
    """In half precision the sum is rounded, not the weight and then the sum."""
    write_tensors(folder / "state.pth", wrapped_tensors())
    half = load_model(folder / "state.pth", dtype=torch.bfloat16)
    assert_close(half, copy.deepcopy(merged()).to(torch.bfloat16), 0.0)
    lora.load_adapter(twice := GOLDEN.fresh_model(torch.bfloat16), GOLDEN.adapter)
    lora.merge_(twice)
    with pytest.raises(AssertionError):
        assert_close(half, twice, 0.0)


# --- alpha ------------------------------------------------------------------------------------------------


def adapter_config(**changes: Any) -> str:
    return json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]} | changes)


def test_where_alpha_comes_from(folder: Path) -> None:
    path = folder / "state.pth"
    write_tensors(path, wrapped_tensors())
    assert open_source(path).alpha == 32
    (folder / "adapter_config.json").write_text(adapter_config())
    assert open_source(path).alpha == 16
    assert open_source(path, lora_alpha=8).alpha == 8
    plain = GOLDEN.fresh_model().language_model.model.layers[0].self_attn.qkv_proj.weight
    deltas = [
        load_model(open_source(path, lora_alpha=alpha))
        .language_model.model.layers[0]
        .self_attn.qkv_proj.weight
        - plain
        for alpha in (8.0, 16.0)
    ]
    assert (2 * deltas[0] - deltas[1]).abs().max() < 1e-6
    assert deltas[0].abs().max() > 1e-3
    with pytest.raises(UnsupportedError, match="lora_alpha nan"):
        open_source(path, lora_alpha=float("nan"))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"r": 4}, CheckpointError, r"r = 4, but the update of .* has rank 8"),
        ({"use_dora": True}, UnsupportedError, "use_dora"),
        ({"rank_pattern": {"q_proj": 2}}, UnsupportedError, "rank_pattern"),
    ],
    ids=["rank", "dora", "pattern"],
)
def test_a_config_of_other_mathematics(
    folder: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    write_tensors(folder / "state.pth", wrapped_tensors())
    (folder / "adapter_config.json").write_text(adapter_config(**changes))
    with pytest.raises(error, match=message):
        open_source(folder / "state.pth")


# --- misfits ----------------------------------------------------------------------------------------------

A, B = (f"{PREFIX}{QUERY}.lora_{half}.default.weight" for half in "AB")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({A: None}, f"half A of the low-rank update of {QUERY}.weight is missing"),
        ({PREFIX + QUERY + ".weight": None}, f"updates {QUERY}.weight, but does not hold it"),
        ({A: torch.zeros(8, 47)}, r"halves \(8, 47\) and \(48, 8\) do not update a weight \(48, 48\)"),
        ({A: torch.zeros(7, 48)}, "halves .* do not update"),
        ({A: torch.zeros(8)}, "halves .* do not update"),
        ({A: torch.zeros(8, 48, dtype=torch.int64)}, r"lora_A\.default\.weight has dtype torch.int64"),
        ({A.replace("default", "other"): torch.zeros(8, 48)}, r"several adapters \(default, other\)"),
        ({QUERY + ".weight": torch.zeros(48, 48)}, f"{PREFIX}{QUERY}.weight and {QUERY}.weight are the same"),
        ({A.replace("lora_A.default", "lora_magnitude_vector"): torch.zeros(48)}, "has no place"),
    ],
    ids=["half", "weight", "width", "rank", "vector", "dtype", "adapters", "double", "dora"],
)
def test_misfits_are_named(folder: Path, changes: dict[str, Tensor | None], message: str) -> None:
    tensors = wrapped_tensors()
    for name, tensor in changes.items():
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    write_tensors(folder / "state.pth", tensors)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder / "state.pth")


def test_updates_by_themselves_are_no_model(tmp_path: Path) -> None:
    path = tmp_path / "adapter_model.bin"
    shutil.copy(GOLDEN.adapter / "adapter_model.bin", path)
    with pytest.raises(CheckpointError, match=r"an adapter goes on top of a model"):
        open_source(path)


# --- an adapter folder as the model -----------------------------------------------------------------------


def adapter_on(folder: Path, base: object) -> Path:
    shutil.copytree(GOLDEN.adapter, folder)
    raw = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(raw | {"base_model_name_or_path": base}))
    return folder


@pytest.mark.parametrize("where", ["absolute", "beside the adapter", "from here"])
def test_an_adapter_that_names_its_base(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(GOLDEN.checkpoint, tmp_path / "base")
    names = {"absolute": str(tmp_path / "base"), "beside the adapter": "../base", "from here": "base"}
    monkeypatch.chdir(tmp_path if where == "from here" else "/")
    source = open_source(adapter_on(tmp_path / "adapter", names[where]))
    assert source.tokenizer_file.is_file()
    model = load_model(source)
    lora.merge_(model)
    assert_close(model, merged())


@pytest.mark.parametrize("base", ["MAGAer13/mplug-owl-llama-7b", None, "", 7, ".", "../adapter"])
def test_an_adapter_whose_base_is_not_here(
    tmp_path: Path, base: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    folder = adapter_on(tmp_path / "adapter", base)
    with pytest.raises(OwlError, match=r"name the base as the model, and this folder as its adapter"):
        open_source(folder)
