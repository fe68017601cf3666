"""The LoRA half of what stage 2 leaves, and the real peft package: each reads what the other writes."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from owl_fast import lora
from owl_fast.checkpoints import read_tensors, save_model
from owl_fast.models.owl import Owl
from tests.golden_data import Golden
from tests.train.runs import run, write_data

GOLDEN = Golden("micro")
LANGUAGE = "language_model.model.layers."
TARGETS = ("q_proj", "v_proj", "down_proj")


def matrices(folder: Path) -> dict[str, Tensor]:
    """Of the language model's layers, by the checkpoint's names."""
    files = (*folder.glob("*.bin"), *folder.glob("*.safetensors"))
    tensors = {name: tensor for file in files for name, tensor in read_tensors(file).items()}
    return {name: t for name, t in tensors.items() if name.startswith(LANGUAGE) and t.ndim == 2}


def original() -> nn.Module:
    """Linear layers under the original's names, and nothing else: all that peft asks for."""
    root = nn.Module()
    for name, weight in matrices(GOLDEN.checkpoint).items():
        *path, last = name.removesuffix(".weight").split(".")
        parent = root
        for part in path:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        linear = nn.Linear(*reversed(weight.shape), bias=False)
        linear.weight.data = weight.float().clone()
        parent.add_module(last, linear)
    return root


def ours(adapter: Path, folder: Path) -> dict[str, Tensor]:
    """The merged weights."""
    model: Owl = GOLDEN.fresh_model()
    lora.load_adapter(model, adapter)
    lora.merge_(model)
    save_model(model, folder)
    return matrices(folder)


def theirs(model: PeftModel) -> dict[str, Tensor]:
    merged = model.merge_and_unload()  # type: ignore[operator]
    return {name: parameter.detach() for name, parameter in merged.named_parameters()}


def assert_same(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    """Equal, and the targets alone are not what they were."""
    before = matrices(GOLDEN.checkpoint)
    assert one.keys() == two.keys() == before.keys()
    for name, weight in one.items():
        assert (weight - two[name]).abs().max() <= 1e-6, name
        moved = (weight - before[name].float()).abs().max().item() > 1e-5
        assert moved == name.removesuffix(".weight").endswith(TARGETS), name


def test_ours_in_peft(tmp_path: Path) -> None:
    assert run(write_data(tmp_path), tmp_path / "run", "--lora-targets", *TARGETS, "--lora-rank", "3") == 0
    final = tmp_path / "run" / "final"
    assert_same(theirs(PeftModel.from_pretrained(original(), str(final))), ours(final, tmp_path / "merged"))


def test_peft_s_in_ours(tmp_path: Path) -> None:
    config = LoraConfig(r=3, lora_alpha=12, target_modules=list(TARGETS), lora_dropout=0.1)
    model = get_peft_model(original(), config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.05)
    model.save_pretrained(str(tmp_path / "theirs"))
    assert_same(ours(tmp_path / "theirs", tmp_path / "merged"), theirs(model))
