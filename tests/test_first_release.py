"""The first release from its .pth to answer and gradient: every reference number (tests/golden/v0)."""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import PIL
import pytest
import torch
from torch import Tensor

from owl_fast import Engine, images
from owl_fast.checkpoints.first_release import FIRST
from owl_fast.checkpoints.names import map_name, slots
from owl_fast.checkpoints.tensorfile import read_tensors, write_tensors
from owl_fast.models.batch import PackedBatch
from owl_fast.models.owl import Owl
from owl_fast.prompts import encode, parse_record_text, raw_pieces
from owl_fast.training import EncodedSample, Sample, encode_sample, pack
from owl_fast.training.objective import token_loss
from owl_fast.training.packing import IGNORED
from tests.golden_data import FirstRelease, image_files
from tests.tolerances import ACTIVATION, GRADIENT, LOSS

GOLDEN = FirstRelease()
IMAGES = image_files()
FORWARD = ("text_only", "one_image", "two_images", "two_turns", "batch_of_2")
GENERATE = ("text_only", "one_image", "two_images", "two_turns", "batch_row0_alone", "batch_row1_alone")
RECORDS = ("mm", "text", "two_images", "empty_answer_text", "too_long_text")
# Zero in theory (softmax does not see a shift of its scores); what comes out is rounding.
NO_GRADIENT = ("self_attn.k_proj.bias",)
NOISE = 1e-6


@pytest.fixture(scope="module")
def model() -> Owl:
    return GOLDEN.fresh_model()


@functools.cache
def engine() -> Engine:
    return Engine.from_pretrained(GOLDEN.checkpoint, device="cpu", dtype="fp32", max_batch=2, **GOLDEN.HEADS)


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return (ours.float() - theirs).abs().max().item()


# --- pictures and text ---


def test_preprocessing() -> None:
    processor, stored = GOLDEN.source().processor(), GOLDEN.tensors("preprocess")
    # Pillow before 13 resizes tall pictures in another order of passes.
    grey_level = 0.0 if int(PIL.__version__.split(".")[0]) >= 13 else 1.001 / 255 / min(images.CLIP_STD)
    assert len(stored) == len(IMAGES)
    for i, path in enumerate(IMAGES):
        limit = grey_level if "img4" in path.name else 0.0
        assert difference(processor(path), stored[f"pixel_values.{i}"]) <= limit, path.name


@pytest.mark.parametrize("alphabet", ["standard", "urlsafe"])
def test_pictures_as_base64(alphabet: str) -> None:
    stored = json.loads((GOLDEN.folder / "golden/base64_images.json").read_text())
    data = base64.b64decode(stored[alphabet], altchars=b"-_" if alphabet == "urlsafe" else None)
    wanted = GOLDEN.tensors("preprocess")[f"pixel_values.{stored['image_index']}"]
    assert torch.equal(GOLDEN.source().processor()(data), wanted)


def test_tokenization_knows_no_special_literals() -> None:
    tokenizer = GOLDEN.source().tokenizer()
    stored = json.loads((GOLDEN.folder / "golden/tokenization.json").read_text(encoding="utf-8"))
    assert any("</s>" in case["text"] for case in stored["cases"])
    for case in stored["cases"]:
        ids = encode(raw_pieces(case["text"]), tokenizer, stored["media_length"])
        assert (ids, ids[1:]) == (case["ids_bos"], case["ids_no_bos"]), case["text"]
        assert tokenizer.decode(ids) == case["decoded"], case["text"]
    for text, row in zip(stored["batched"]["texts"], stored["batched"]["input_ids"], strict=True):
        ids = encode(raw_pieces(text), tokenizer, stored["media_length"])
        assert row == ids + [stored["batch_pad_id"]] * (len(row) - len(ids))


# --- activations ---


@torch.inference_mode()
def test_vision_tower_and_abstractor(model: Owl) -> None:
    stored = GOLDEN.tensors("vision")
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        return lambda _module, _inputs, output: seen.__setitem__(name, output)

    hooks = [model.vision_model.embeddings.register_forward_hook(keep("vision.hidden.0"))]
    for part, layers, first in (
        ("vision.hidden", model.vision_model.encoder.layers, 1),
        ("abstractor.layer", model.abstractor.encoder.layers, 0),
    ):
        for i, layer in enumerate(layers, start=first):
            hooks.append(layer.register_forward_hook(keep(f"{part}.{i}")))
    seen["vision.last_hidden_state"] = model.vision_model(GOLDEN.pixels(range(2)))
    rows = model.abstract(seen["vision.last_hidden_state"])
    for hook in hooks:
        hook.remove()
    seen["abstractor.visual_fc"] = rows[:, :-1]
    seen["visual_embeds"] = model.encode_images(GOLDEN.pixels(range(5)))
    assert seen.keys() == stored.keys() - {"abstractor.layer0_prob_bias_kv"}
    for name, ours in seen.items():
        assert difference(ours, stored[name]) < ACTIVATION, name


@torch.inference_mode()
def test_attention_to_the_extra_key(model: Owl) -> None:
    """Moving bias_v by 1 moves every head's result by the weight it gives to the extra key."""
    attention = model.abstractor.encoder.layers[0].crossattention.attention
    calls: list[tuple[Tensor, Tensor]] = []
    hook = attention.register_forward_hook(lambda _m, inputs, output: calls.append((inputs, output)))
    model.encode_images(GOLDEN.pixels(range(2)))
    hook.remove()
    (inputs, before), bias = calls[0], attention.bias_v.clone()
    attention.bias_v += 1
    moved = (attention(*inputs) - before).unflatten(-1, (attention.num_heads, -1))  # (N, Q, H, D)
    attention.bias_v.copy_(bias)
    stored = GOLDEN.tensors("vision")["abstractor.layer0_prob_bias_kv"]  # (N, H, Q)
    assert difference(moved.mean(-1).transpose(1, 2), stored) < ACTIVATION


def logits_of(model: Owl, ids: list[list[int]], pictures: list[int]) -> tuple[Tensor, Tensor, PackedBatch]:
    rows = model.encode_images(GOLDEN.pixels(pictures)).flatten(0, 1) if pictures else None
    batch = PackedBatch.from_sequences(ids, rows)
    return model.embed(batch), model.logits(model(batch)), batch


@pytest.mark.parametrize("case", FORWARD)
@torch.inference_mode()
def test_logits(model: Owl, case: str) -> None:
    name = f"forward_{case}"
    stored, meta = GOLDEN.tensors(name), GOLDEN.meta(name)
    embeds, logits, batch = logits_of(model, GOLDEN.sequences(name), meta["image_index"])
    for i, (start, end) in enumerate(pairwise(batch.bounds)):
        assert difference(logits[end - 8 : end], stored["logits_tail"][i]) < ACTIVATION, i
        if "inputs_embeds" in stored:
            wanted = stored["inputs_embeds"][i, : end - start]
            assert difference(embeds[start:end], wanted) < ACTIVATION, i
    if "logits" in stored:
        assert difference(logits[::3], stored["logits"][0]) < ACTIVATION


@pytest.mark.parametrize("case", FORWARD)
@torch.inference_mode()
def test_bfloat16_stays_near_the_originals_own_gap(case: str) -> None:
    name = f"forward_{case}"
    stored, meta = GOLDEN.tensors(name), GOLDEN.meta(name)
    half = GOLDEN.fresh_model(torch.bfloat16)
    _, logits, batch = logits_of(half, GOLDEN.sequences(name), meta["image_index"])
    tails = torch.stack([logits[end - 8 : end].float() for end in batch.bounds[1:]])
    error, gap = (tails - stored["logits_tail"]).abs(), meta["bf16_of_original_vs_fp32"]
    assert error.max() <= 2 * gap["max_abs"]
    assert error.mean() <= 2 * gap["mean_abs"]


# --- answers ---


def check_answer(
    engine: Engine, stored: Mapping[str, Tensor], prefix: str, prompt: str, pictures: list[int]
) -> None:
    wanted = stored[f"{prefix}new_ids"][0].tolist()
    out = engine.generate(prompt, images=[IMAGES[i] for i in pictures], max_tokens=24)
    assert out.token_ids == wanted
    assert out.logprobs == pytest.approx(stored[f"{prefix}logprobs"][0].tolist(), abs=ACTIVATION)
    assert out.usage.prompt_tokens == stored[f"{prefix}input_ids"].shape[1]


@pytest.mark.parametrize("case", GENERATE)
def test_greedy_answers(case: str) -> None:
    meta = GOLDEN.meta(f"generate_{case}")
    check_answer(engine(), GOLDEN.tensors(f"generate_{case}"), "", meta["prompts"][0], meta["image_index"])


@pytest.mark.parametrize("spelling", ["", ".default", ".base_layer"])
def test_answers_of_the_wrapped_file(spelling: str, tmp_path: Path) -> None:
    """peft 0.2 writes lora_A, 0.3 lora_A.default, later ones base_layer for the weight as well."""
    path = GOLDEN.wrapped
    if spelling != ".default":
        path = tmp_path / "pytorch_model.bin"
        write_tensors(path, {respell(n, spelling): t for n, t in read_tensors(GOLDEN.wrapped).items()})
    wrapped = Engine.from_pretrained(
        path, device="cpu", dtype="fp32", max_batch=1, tokenizer=GOLDEN.folder, **GOLDEN.HEADS
    )
    stored, meta = GOLDEN.tensors("lora_wrapped"), GOLDEN.meta("lora_wrapped")
    for case in ("text_only", "one_image"):
        prompt, pictures = meta[case]["prompts"][0], meta[case]["image_index"]
        check_answer(wrapped, stored, f"{case}.", prompt, pictures)
        with torch.inference_mode():
            _, logits, _ = logits_of(wrapped.model, stored[f"{case}.input_ids"].tolist(), pictures)
        assert difference(logits[-8:], stored[f"{case}.logits_tail"][0]) < ACTIVATION


def respell(name: str, spelling: str) -> str:
    if spelling == "":
        return name.replace(".default.", ".")
    changed = name.endswith(("q_proj.weight", "v_proj.weight")) and "language_model" in name
    return name.replace("_proj.weight", "_proj.base_layer.weight") if changed else name


# --- training ---


def encoded(name: str) -> EncodedSample:
    meta, source = GOLDEN.meta("train_data"), GOLDEN.source()
    record = meta["records"][name]
    pictures = [next(p for p in IMAGES if p.name == file) for file in record.get("image", [])]
    processor = source.processor()
    return encode_sample(
        Sample(parse_record_text(record["text"], len(pictures), name), pictures, name),
        source.tokenizer(),
        meta["media_length"],
        meta["max_length"],
        look=lambda path: processor(path, training=True),
    )


@pytest.mark.parametrize("name", RECORDS)
def test_training_ids_and_labels(name: str) -> None:
    stored, length = GOLDEN.tensors("train_data"), GOLDEN.meta("train_data")["seq_length"][name]
    ours = encoded(name)
    assert list(ours.token_ids) == stored[f"{name}.input_ids"][:length].tolist()
    mask = torch.stack([stored[f"{name}.{m}_mask"] for m in ("non_padding", "non_media", "prompt")]).prod(0)
    wanted = torch.where(mask.bool(), stored[f"{name}.input_ids"][1:], IGNORED)
    assert list(ours.labels[1:]) == wanted[: length - 1].tolist()
    assert (wanted[length - 1 :] == IGNORED).all()


@pytest.mark.parametrize(("row", "name"), [(0, "mm"), (1, "text")])
def test_labels_of_the_loss(row: int, name: str) -> None:
    stored, ours = GOLDEN.tensors("train_loss"), encoded(name).labels
    wanted = torch.where(stored["loss_mask"][row].bool(), stored["labels"][row, 1:], IGNORED).tolist()
    assert list(ours[1:]) == wanted[: len(ours) - 1]


def test_training_losses(model: Owl) -> None:
    stored, extra = GOLDEN.tensors("train_loss"), GOLDEN.meta("train_loss")["extra_record_losses"]
    wanted = {(name,): stored[f"loss_{name}"].item() for name in ("mm", "text")}
    wanted[("mm", "text")] = stored["loss_batch"].item()
    wanted |= {(name,): extra[name] for name in RECORDS if name in extra}
    with torch.no_grad():
        for names, loss in wanted.items():
            batch = pack([encoded(name) for name in names], model.config.image_rows)
            assert token_loss(model, batch).item() / batch.labelled == pytest.approx(loss, abs=LOSS), names


def test_gradients_of_every_tensor() -> None:
    model = GOLDEN.fresh_model().requires_grad_(True)  # in eval mode: the numbers are without dropout
    batch = pack([encoded(name) for name in ("mm", "text")], model.config.image_rows)
    (token_loss(model, batch) / batch.labelled).backward()
    stored, norms = GOLDEN.tensors("train_grad"), GOLDEN.meta("train_grad")["l2_of_all_gradients"]
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    views = {n: gradients[s.tensor].narrow(0, s.start, s.shape[0]) for n, s in slots(model).items()}
    places = FIRST.places(views, model.config)
    ours = {}
    for name in norms:
        place = places.pop(map_name(FIRST.names, name))
        ours[name] = place.view.reshape(place.shape).double()
    assert not places
    for name, norm in norms.items():
        if name.endswith(NO_GRADIENT):
            assert ours[name].abs().max().item() <= NOISE, name
        else:
            assert ours[name].norm().item() == pytest.approx(norm, rel=GRADIENT), name
    assert len(stored) == 12
    for name, theirs in stored.items():
        limit = GRADIENT * theirs.abs().max().item()
        assert (ours[name.removeprefix("grad.")] - theirs).abs().max().item() <= limit, name
    # The padding row, id 2 in this release, learns nothing.
    assert GOLDEN.meta("train_grad")["embedding_row_2_grad_is_zero"]
    assert not ours["language_model.model.embed_tokens.weight"][2].any()
