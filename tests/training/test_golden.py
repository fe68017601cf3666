"""Labels, losses, gradients and three optimizer steps against the original's (tests/golden, train_*)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from owl_fast import lora
from owl_fast.checkpoints import load_model
from owl_fast.images import ImageProcessor
from owl_fast.lora import LoraConfig
from owl_fast.models.fusion import parameter_sources
from owl_fast.models.owl import Owl
from owl_fast.prompts import parse_record_text
from owl_fast.tokenizer import Tokenizer
from owl_fast.training import (
    FULL_LLAMA,
    STAGE1,
    EncodedSample,
    OptimizerSettings,
    Sample,
    Source,
    Stage,
    Trainer,
    TrainSettings,
    encode_sample,
    pack,
    stage2,
)
from owl_fast.training.objective import token_loss
from owl_fast.training.packing import IGNORED
from owl_fast.training.stages import LORA_MARK
from tests.golden_data import GOLDEN, NAMES, Golden
from tests.tolerances import AFTER_STEPS, GRADIENT, LOSS

MATCHED = ("mm", "text", "two_images", "empty_answer_text", "too_long_text")
STEPS = 3
# Exactly zero in theory; AdamW turns their rounding noise into whole steps (README of the data).
NO_GRADIENT = ("attention.key.bias", "query_key_value.bias")
NOISE = 1e-6

# Case -> (stage, whether it starts from lora_adapter)
CASES = {
    "train_stage1": (STAGE1, False),
    "train_lora": (stage2(LoraConfig(dropout=0.0), train_abstractor=False), True),
    "train_lora_abstractor": (stage2(LoraConfig(dropout=0.0)), True),
    "train_full_lm": (FULL_LLAMA, False),
}


def folder_without_dropout(golden: Golden, tmp_path: Path) -> Path:
    """The reference numbers were made without dropout: the same folders with p = 0 in their configs."""
    folder = tmp_path / golden.name
    shutil.copytree(golden.checkpoint, folder)
    shutil.copytree(golden.adapter, folder / "adapter")
    for path, section, key in (
        (folder / "config.json", "visual_abstractor_config", "attention_probs_dropout_prob"),
        (folder / "adapter/adapter_config.json", None, "lora_dropout"),
    ):
        raw = json.loads(path.read_text())
        (raw if section is None else raw[section])[key] = 0.0
        path.write_text(json.dumps(raw))
    return folder


def encoded(golden: Golden, name: str, image_rows: int) -> EncodedSample:
    meta = golden.meta("train_data")
    record = meta["records"][name]
    images = [GOLDEN / "images" / file for file in record.get("image", [])]
    processor = ImageProcessor.from_folder(golden.checkpoint)
    return encode_sample(
        Sample(parse_record_text(record["text"], len(images), name), images, name),
        Tokenizer.from_file(golden.checkpoint / "tokenizer.model"),
        image_rows,
        meta["max_length"],
        look=lambda path: processor(path, training=True),
    )


@pytest.fixture(scope="module", params=NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


@pytest.fixture
def model(golden: Golden, tmp_path: Path) -> Owl:
    return load_model(folder_without_dropout(golden, tmp_path), dtype=torch.float32)


@pytest.mark.parametrize("name", MATCHED)
def test_ids_and_labels(golden: Golden, name: str) -> None:
    stored, meta = golden.tensors("train_data"), golden.meta("train_data")
    ours = encoded(golden, name, meta["media_length"])
    length = meta["seq_length"][name]
    assert list(ours.token_ids) == stored[f"{name}.input_ids"][:length].tolist()
    mask = torch.stack([stored[f"{name}.{m}_mask"] for m in ("non_padding", "non_media", "prompt")]).prod(0)
    wanted = torch.where(mask.bool(), stored[f"{name}.input_ids"][1:], IGNORED)
    assert list(ours.labels[1:]) == wanted[: length - 1].tolist()
    assert (wanted[length - 1 :] == IGNORED).all()


@pytest.mark.parametrize(("row", "name"), [(0, "mm"), (1, "text")])
def test_labels_of_the_loss(golden: Golden, row: int, name: str) -> None:
    ours = encoded(golden, name, golden.meta("train_data")["media_length"]).labels
    theirs = golden.tensors("train_loss")["labels"][row].tolist()
    assert list(ours[1:]) == theirs[1 : len(ours)]


def test_losses(golden: Golden, model: Owl) -> None:
    stored, extra = golden.tensors("train_loss"), golden.meta("train_loss")["extra_record_losses"]
    wanted = {(name,): stored[f"loss_{name}"].item() for name in ("mm", "text")}
    wanted[("mm", "text")] = stored["loss_batch"].item()
    wanted |= {(name,): extra[name] for name in MATCHED if name in extra}
    rows = model.config.image_rows
    with torch.no_grad():
        for names, loss in wanted.items():
            batch = pack([encoded(golden, name, rows) for name in names], rows)
            assert token_loss(model, batch).item() / batch.labelled == pytest.approx(loss, abs=LOSS), names


def case_ids() -> Iterator[tuple[str, str]]:
    for name in NAMES:
        files = Golden(name).manifest["files"]
        yield from ((name, case) for case in CASES if case in files)


def checkpoint_tensors(model: Owl, gradients: bool) -> dict[str, Tensor]:
    """What trains, or its gradient, under the original's names without PEFT's decorations."""
    found = {}
    for name, parameter in model.named_parameters():
        tensor = parameter.grad if gradients else parameter.detach()
        if not parameter.requires_grad or tensor is None:
            continue
        if LORA_MARK in name:
            module, _, rest = name.partition(LORA_MARK)
            part, half = rest.split(".")
            found[f"{module.rpartition('.')[0]}.{part}.{half}"] = tensor.clone()
        else:
            sources = parameter_sources(name)
            rows = model.get_submodule(name.rpartition(".")[0]).rows if len(sources) > 1 else len(tensor)
            found |= {s: t.clone() for s, t in zip(sources, tensor.split(rows), strict=True)}
    return found


def plain(name: str) -> str:
    name = name.removeprefix("base_model.model.")
    return name.removesuffix(".default.weight") if ".lora_" in name else name


def trainer_for(model: Owl, stage: Stage, samples: list[EncodedSample], out_dir: Path) -> Trainer:
    settings = TrainSettings(
        steps=STEPS,
        batch=len(samples),
        # Warm-up 0 and a final fraction of 1 make the rate constant, as in the reference run.
        optimizer=OptimizerSettings(lr=1e-4, weight_decay=0.1, final_fraction=1.0, clip=None),
        progress=False,
    )
    return Trainer(model, stage, [Source.of("golden", samples)], settings, out_dir)


@pytest.mark.parametrize(("name", "case"), list(case_ids()))
def test_gradients_and_three_steps(name: str, case: str, tmp_path: Path) -> None:
    golden = Golden(name)
    stage, from_adapter = CASES[case]
    folder = folder_without_dropout(golden, tmp_path)
    model = load_model(folder, dtype=torch.float32)
    if from_adapter:
        lora.load_adapter(model, folder / "adapter")
    rows = model.config.image_rows
    samples = [encoded(golden, record, rows) for record in golden.meta("train_loss")["order"]]
    trainer = trainer_for(model, stage, samples, tmp_path / "out")
    stored, meta = golden.tensors(case), golden.meta(case)
    check_start(model, stored)

    batches = [pack(samples, rows)]
    model.train()
    trainer.accumulate(batches)
    gradients = checkpoint_tensors(model, gradients=True)
    assert gradients.keys() == {plain(n) for n in meta["trainable"]}
    check_gradients(gradients, stored, meta)
    trainer.optimizer.zero_grad()

    steps = [trainer.update(batches) for _ in range(STEPS)]
    assert steps[0]["grad_norm"] == pytest.approx(meta["grad_norm_total"], rel=GRADIENT)
    with torch.no_grad():
        after = token_loss(model, batches[0]).item() / batches[0].labelled
    losses = [*(step["loss"] for step in steps), after]
    assert losses == pytest.approx(meta["losses_at_steps_0_1_2_and_after"], abs=LOSS)
    check_parameters(checkpoint_tensors(model, gradients=False), stored, meta)


def entries(stored: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    return {plain(n.removeprefix(kind)): t for n, t in stored.items() if n.startswith(kind)}


def check_start(model: Owl, stored: dict[str, Tensor]) -> None:
    ours = checkpoint_tensors(model, gradients=False)
    for name, tensor in entries(stored, "init.").items():
        assert torch.equal(ours[name], tensor), name


def check_gradients(ours: dict[str, Tensor], stored: dict[str, Tensor], meta: dict[str, Any]) -> None:
    for name, theirs in entries(stored, "grad.").items():
        limit = NOISE if name.endswith(NO_GRADIENT[0]) else GRADIENT * theirs.abs().max().item()
        assert (ours[name] - theirs).abs().max().item() <= limit, name
    for name, stats in meta["grad_stats"].items():
        gradient = ours[plain(name)].double()
        if name.endswith(NO_GRADIENT[0]):
            assert gradient.abs().max().item() <= NOISE, name
            continue
        assert gradient.norm().item() == pytest.approx(stats["l2"], rel=GRADIENT), name
        # A sum of n entries is off by at most n times the error of one.
        limit = GRADIENT * gradient.abs().max().item() * gradient.numel()
        assert gradient.sum().item() == pytest.approx(stats["sum"], abs=limit), name


def check_parameters(ours: dict[str, Tensor], stored: dict[str, Tensor], meta: dict[str, Any]) -> None:
    compared = entries(stored, "after3.")
    assert compared
    for name, theirs in compared.items():
        assert (ours[name] - theirs).abs().max().item() <= AFTER_STEPS, name
    for name, stats in meta["after3_stats"].items():
        if name.endswith(NO_GRADIENT):
            continue
        parameter = ours[plain(name)].double()
        limit = AFTER_STEPS * parameter.numel() ** 0.5
        assert parameter.norm().item() == pytest.approx(stats["l2"], abs=limit), name
        assert parameter.sum().item() == pytest.approx(stats["sum"], abs=AFTER_STEPS * parameter.numel()), (
            name
        )


def test_picture_rows_are_not_labelled(golden: Golden) -> None:
    """The row before a picture would otherwise be taught an id that does not exist."""
    sample = encoded(golden, "two_images", golden.meta("train_data")["media_length"])
    pairs = [(i, k) for i, k in pairwise(sample.token_ids) if k < 0]
    assert pairs
    assert all(label == IGNORED for i, label in zip(sample.token_ids, sample.labels, strict=True) if i < 0)
