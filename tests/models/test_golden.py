"""The models against every activation the original implementation left (tests/golden)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from owl_fast import lora
from owl_fast.models.batch import PackedBatch
from owl_fast.models.owl import Owl
from tests.golden_data import NAMES, Golden
from tests.tolerances import ACTIVATION, SAME_RUN

CASES = ("text_only", "one_image", "two_images", "two_turns", "batch_images", "batch_image_and_text")


@pytest.fixture(scope="module", params=NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


@pytest.fixture(scope="module")
def model(golden: Golden) -> Owl:
    return golden.fresh_model()


def outputs_of(modules: nn.ModuleList, run: Callable[..., object]) -> list[Tensor]:
    """Run and return each module's output in order."""
    seen: list[Tensor] = []
    hooks = [m.register_forward_hook(lambda _m, _a, out: seen.append(out)) for m in modules]
    run()
    for hook in hooks:
        hook.remove()
    return seen


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return (ours.float() - theirs).abs().max().item()


@torch.inference_mode()
def test_vision_tower_layer_by_layer(golden: Golden, model: Owl) -> None:
    stored, pixels = golden.tensors("vision"), golden.pixels(range(3))
    tower = model.vision_model
    layers = outputs_of(tower.encoder.layers, lambda: tower(pixels))
    hidden = [tower.embeddings(pixels), *layers]
    for index, state in enumerate(hidden):
        assert difference(state, stored[f"vision.hidden.{index}"]) < ACTIVATION, f"layer {index}"
    assert f"vision.hidden.{len(hidden)}" not in stored
    assert difference(tower(pixels), stored["vision.last_hidden_state"]) < ACTIVATION


@torch.inference_mode()
def test_abstractor_layer_by_layer(golden: Golden, model: Owl) -> None:
    stored = golden.tensors("vision")
    features = stored["vision.last_hidden_state"]
    layers = outputs_of(model.abstractor.encoder.layers, lambda: model.abstract(features))
    for index, state in enumerate(layers):
        assert difference(state, stored[f"abstractor.layer.{index}"]) < ACTIVATION, f"layer {index}"
    assert f"abstractor.layer.{len(layers)}" not in stored
    rows = model.encode_images(golden.pixels(range(5)))
    assert difference(rows[:3, :-1], stored["abstractor.visual_fc"]) < ACTIVATION
    assert difference(rows, stored["visual_embeds"]) < ACTIVATION


def batch_of(golden: Golden, case: str, model: Owl) -> PackedBatch:
    indices = golden.meta(case)["image_index"]
    rows = model.encode_images(golden.pixels(indices)).flatten(0, 1) if indices else None
    return PackedBatch.from_sequences(golden.sequences(case), rows)


def by_sequence(rows: Tensor, batch: PackedBatch) -> list[Tensor]:
    return [rows[a:b] for a, b in pairwise(batch.bounds)]


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_language_model(golden: Golden, model: Owl, case: str) -> None:
    stored, batch = golden.tensors(f"forward_{case}"), batch_of(golden, f"forward_{case}", model)
    hidden = model(batch)
    results = {
        "inputs_embeds": model.embed(batch),
        "final_hidden": hidden,
        "logits": model.logits(hidden),
    }
    for name, rows in results.items():
        for index, ours in enumerate(by_sequence(rows, batch)):
            if name in stored:
                assert difference(ours, stored[name][index, : len(ours)]) < ACTIVATION, f"{name} {index}"
            if name == "logits":
                assert difference(ours[-8:], stored["logits_tail"][index]) < ACTIVATION, f"tail {index}"


@pytest.mark.parametrize("case", ["batch_images", "batch_image_and_text"])
@torch.inference_mode()
def test_a_row_does_not_see_its_neighbours(golden: Golden, model: Owl, case: str) -> None:
    batch = batch_of(golden, f"forward_{case}", model)
    together = by_sequence(model.logits(model(batch)).log_softmax(-1), batch)
    images = iter(golden.meta(f"forward_{case}")["image_index"])
    for ids, ours in zip(golden.sequences(f"forward_{case}"), together, strict=True):
        count = ids.count(-1) // model.config.image_rows
        rows = model.encode_images(golden.pixels([next(images) for _ in range(count)])) if count else None
        alone = PackedBatch.from_sequences([ids], None if rows is None else rows.flatten(0, 1))
        logits = model.logits(model(alone)).log_softmax(-1)
        assert torch.equal(logits.argmax(-1), ours.argmax(-1))
        assert difference(logits, ours) < SAME_RUN


@torch.inference_mode()
def test_adjacent_pictures_are_both_seen(golden: Golden, model: Owl) -> None:
    rows = model.encode_images(golden.pixels([0, 1]))
    ids = [1, *[-1] * 2 * model.config.image_rows, 5]
    batch = PackedBatch.from_sequences([ids], rows.flatten(0, 1))
    assert torch.equal(model.embed(batch)[1:-1], rows.flatten(0, 1))
    swapped = PackedBatch.from_sequences([ids], rows.flip(0).flatten(0, 1))
    assert difference(model(batch), model(swapped)) > 100 * ACTIVATION


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_bfloat16_stays_near_the_originals_own_gap(golden: Golden, case: str) -> None:
    half = golden.fresh_model(torch.bfloat16)
    stored, gap = (
        golden.tensors(f"forward_{case}"),
        golden.meta(f"forward_{case}")["bf16_of_original_vs_fp32"],
    )
    batch = batch_of(golden, f"forward_{case}", half)
    logits = half.logits(half(batch))
    assert logits.dtype == torch.bfloat16
    tails = torch.stack([rows[-8:].float() for rows in by_sequence(logits, batch)])
    error = (tails - stored["logits_tail"]).abs()
    assert error.max() <= 2 * gap["max_abs"]
    assert error.mean() <= 2 * gap["mean_abs"]


@torch.inference_mode()
def test_float16_runs_close_to_float32(golden: Golden) -> None:
    half = golden.fresh_model(torch.float16)
    stored, batch = golden.tensors("forward_one_image"), batch_of(golden, "forward_one_image", half)
    gap = golden.meta("forward_one_image")["bf16_of_original_vs_fp32"]
    error = (half.logits(half(batch)).float() - stored["logits"][0]).abs()
    assert error.max() <= gap["max_abs"] / 4  # three more mantissa bits than bfloat16


@torch.inference_mode()
def test_adapter_attached_and_merged(golden: Golden) -> None:
    model = golden.fresh_model()
    stored = golden.tensors("forward_lora_one_image")
    rows = model.encode_images(golden.pixels([0])).flatten(0, 1)
    batch = PackedBatch.from_sequences([stored["input_ids"][0].tolist()], rows)
    plain = model.logits(model(batch))[-8:]
    lora.load_adapter(model, golden.adapter)
    attached = model.logits(model(batch))[-8:]
    assert difference(attached, stored["logits_tail"][0]) < ACTIVATION
    assert difference(attached, plain) > 100 * ACTIVATION
    lora.merge_(model)
    assert not any(".lora." in name for name, _ in model.named_parameters())
    assert difference(model.logits(model(batch))[-8:], stored["logits_tail"][0]) < ACTIVATION
