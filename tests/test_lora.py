"""LoRA: targets, PEFT's files both ways, strictness."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from owl_fast import lora
from owl_fast.checkpoints import read_tensors
from owl_fast.errors import CheckpointError, UnsupportedError
from owl_fast.lora import LoraConfig
from tests.golden_data import Golden

GOLDEN = Golden("micro")


def test_default_targets_are_the_originals() -> None:
    names = lora.attach(GOLDEN.fresh_model(), LoraConfig())
    assert names == [
        f"language_model.model.layers.{i}.self_attn.{p}_proj" for i in range(2) for p in ("q", "v")
    ]


def test_fresh_updates_change_nothing_and_are_reproducible() -> None:
    model, twin = GOLDEN.fresh_model(), GOLDEN.fresh_model()
    x = torch.randn(3, 48, generator=torch.Generator().manual_seed(0))
    layer = model.language_model.model.layers[0].self_attn.qkv_proj
    with torch.no_grad():
        before = layer(x)
        for m in (model, twin):
            lora.attach(m, LoraConfig(target_modules=("q_proj", "v_proj")), seed=7)
        assert torch.equal(layer(x), before)
    assert torch.equal(
        layer.lora["q_proj"].lora_A,
        twin.language_model.model.layers[0].self_attn.qkv_proj.lora["q_proj"].lora_A,
    )
    with pytest.raises(UnsupportedError, match="already carries"):
        lora.attach(model, LoraConfig())


@pytest.mark.parametrize("format", ["safetensors", "bin"])
def test_save_and_load_keep_every_bit(tmp_path: Path, format: str) -> None:
    model = GOLDEN.fresh_model()
    config = lora.load_adapter(model, GOLDEN.adapter)
    trained = ["abstractor.vit_eos", "abstractor.encoder.layers.0.crossattention.attention.value.weight"]
    with torch.no_grad():
        model.abstractor.vit_eos.add_(1.0)
        model.abstractor.encoder.layers[0].crossattention.attention.key_value.weight[32:].add_(1.0)
    lora.save_adapter(model, tmp_path / "out", config, base="base", extra=trained, format=format)
    again = GOLDEN.fresh_model()
    assert lora.load_adapter(again, tmp_path / "out") == config
    theirs = dict(again.named_parameters())
    assert all(torch.equal(p, theirs[n]) for n, p in model.named_parameters())
    original = torch.load(GOLDEN.adapter / "adapter_model.bin", weights_only=True)
    written = read_tensors(tmp_path / f"out/adapter_model.{format}")
    assert written.keys() == original.keys()
    assert all(torch.equal(written[name], original[name]) for name in original)
    assert set(load_file(tmp_path / "out/non_lora.safetensors")) == set(trained)


def edited(tmp_path: Path, edit: Callable[..., object]) -> Path:
    """A copy of the golden adapter as safetensors, its tensors edited."""
    tensors = torch.load(GOLDEN.adapter / "adapter_model.bin", weights_only=True)
    edit(tensors)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    shutil.copyfile(GOLDEN.adapter / "adapter_config.json", tmp_path / "adapter_config.json")
    return tmp_path


KEY = "base_model.model.language_model.model.layers.1.self_attn.v_proj.lora_B.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(KEY), "v_proj.lora_B.weight is missing"),
        (lambda t: t.update({KEY: torch.zeros(3, 8)}), r"shape \(3, 8\), wanted \(48, 8\)"),
        (lambda t: t.update({KEY.replace("v_proj", "k_proj"): torch.zeros(48, 8)}), "k_proj.*fits no"),
    ],
    ids=["missing", "shape", "unused"],
)
def test_files_must_fit_exactly(tmp_path: Path, edit: Callable[..., object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        lora.load_adapter(GOLDEN.fresh_model(), edited(tmp_path, edit))


@pytest.mark.parametrize("option", [{"use_dora": True}, {"bias": "all"}, {"rank_pattern": {"q_proj": 4}}])
def test_other_mathematics_is_refused(tmp_path: Path, option: dict[str, object]) -> None:
    folder = edited(tmp_path, lambda t: None)
    raw = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(raw | option))
    with pytest.raises(UnsupportedError, match=next(iter(option))):
        lora.load_adapter(GOLDEN.fresh_model(), folder)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("query_tokens", torch.zeros(1), "has shape"),
        ("query_tokens", torch.zeros(1, 5, 32, dtype=torch.int64), "query_tokens has dtype torch.int64"),
        ("somewhere", torch.zeros(1), "tensor somewhere has no place in the model"),
    ],
)
def test_extra_tensors_that_do_not_fit(tmp_path: Path, name: str, tensor: torch.Tensor, message: str) -> None:
    folder = edited(tmp_path, lambda t: None)
    save_file({name: tensor}, folder / "non_lora.safetensors")
    with pytest.raises(CheckpointError, match=rf"non_lora\.safetensors: .*{message}"):
        lora.load_adapter(GOLDEN.fresh_model(), folder)


def test_integers_are_no_update(tmp_path: Path) -> None:
    folder = edited(tmp_path, lambda t: t.update({KEY: t[KEY].long()}))
    with pytest.raises(CheckpointError, match=rf"adapter_model\.safetensors: tensor {KEY} has dtype"):
        lora.load_adapter(GOLDEN.fresh_model(), folder)


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "non_lora.safetensors"])
def test_weights_from_outside_the_folder_are_refused(tmp_path: Path, file: str) -> None:
    (tmp_path / "folder").mkdir()
    folder = edited(tmp_path / "folder", lambda t: None)
    save_file({"query_tokens": GOLDEN.fresh_model().query_tokens.detach()}, folder / "non_lora.safetensors")
    lora.load_adapter(GOLDEN.fresh_model(), folder)
    (folder / file).rename(tmp_path / file)
    (folder / file).symlink_to(tmp_path / file)
    with pytest.raises(CheckpointError, match=f"{file}: a link to .* outside the folder"):
        lora.load_adapter(GOLDEN.fresh_model(), folder)


@pytest.mark.parametrize("files", [[], ["adapter_model.bin", "adapter_model.safetensors"]])
def test_one_weight_file_is_wanted(tmp_path: Path, files: list[str]) -> None:
    shutil.copyfile(GOLDEN.adapter / "adapter_config.json", tmp_path / "adapter_config.json")
    for file in files:
        (tmp_path / file).touch()
    with pytest.raises(CheckpointError, match=f"found {len(files)} of them"):
        lora.load_adapter(GOLDEN.fresh_model(), tmp_path)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"r": 0}, "wanted r of"),
        ({"r": True, "lora_alpha": None}, "wanted r of"),
        ({"r": 1 << 40}, "wanted r of"),
        ({"lora_alpha": float("nan")}, "wanted r of"),
        ({"lora_alpha": 10**400}, "wanted r of"),
        ({"lora_dropout": "0"}, "lora_dropout = '0'"),
        ({"lora_dropout": -1}, "lora_dropout = -1"),
        ({"target_modules": None}, "target_modules must be"),
        ({"target_modules": "("}, "no regular expression"),
        ({"target_modules": "(a+)+b"}, "repeats a group"),
        ({"target_modules": ".*.*.*.*q_proj"}, "more than 3 repetitions"),
        ({"target_modules": "a?" * 30 + "a" * 30}, "more than 3 repetitions"),
        ({"target_modules": "q" * 2000}, "or 1000 characters"),
    ],
)
def test_nonsense_settings(tmp_path: Path, option: dict[str, object], message: str) -> None:
    folder = edited(tmp_path, lambda t: None)
    raw = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(raw | option))
    with pytest.raises((CheckpointError, UnsupportedError), match=re.escape(message)) as caught:
        lora.load_adapter(GOLDEN.fresh_model(), folder)
    assert str(caught.value).startswith(f"{folder / 'adapter_config.json'}: ")


@pytest.mark.parametrize(
    "pattern", [LoraConfig().target_modules, r"(?:model\.)?layers\.\d+\..*?\.(q|v)_proj", r".*\*\+\?\{\)*"]
)
def test_harmless_patterns_are_allowed(pattern: str) -> None:
    raw = json.loads((GOLDEN.adapter / "adapter_config.json").read_text())
    assert LoraConfig.from_dict(raw | {"target_modules": pattern}).target_modules == pattern


@pytest.mark.parametrize("spoilt", ["lora", "extra"])
def test_a_model_is_changed_wholly_or_not_at_all(tmp_path: Path, spoilt: str) -> None:
    model = GOLDEN.fresh_model()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    nan = torch.tensor(float("nan"))
    folder = edited(tmp_path, lambda t: t[KEY].view(-1)[-1:].copy_(nan) if spoilt == "lora" else None)
    bad = before["abstractor.vit_eos"].clone().fill_(nan)
    save_file(
        {"query_tokens": before["query_tokens"] + 1, "abstractor.vit_eos": bad}, folder / lora.EXTRA_FILE
    )
    with pytest.raises(CheckpointError, match=KEY if spoilt == "lora" else r"vit_eos holds NaN"):
        lora.load_adapter(model, folder)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
