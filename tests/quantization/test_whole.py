"""Quantized models: what is held how, what they compute, training on top of them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from owl_fast import ops
from owl_fast.checkpoints import load_model, save_model
from owl_fast.checkpoints.load import empty_model
from owl_fast.checkpoints.names import packed_views, views
from owl_fast.config import Quantization
from owl_fast.errors import UnsupportedError
from owl_fast.lora import LoraConfig, attach, lora_slots, merge_
from owl_fast.models.batch import PackedBatch
from owl_fast.models.layers import Linear, PackedWeight
from owl_fast.models.owl import Owl
from owl_fast.quantization.whole import dequantize_, lay_out_, quantize_
from owl_fast.training.stages import FULL_LLAMA, STAGE1, stage2
from tests.golden_data import Golden

ALL = [
    Quantization("int8"),
    Quantization("int4"),
    Quantization("int4", "int8", 16),
    Quantization(None, "int8"),
]
IDS = [[5, 9, 2, 7, 30, 11, 4], [3, 8, 1]]


def quantized(quantization: Quantization, name: str = "micro") -> Owl:
    model = Golden(name).fresh_model()
    quantize_(model, quantization)
    return model


def logits(model: Owl) -> torch.Tensor:
    return model.logits(model(PackedBatch.from_sequences(IDS)))


@pytest.mark.parametrize("quantization", ALL, ids=str)
def test_linear_weights_are_held_so_and_no_others(quantization: Quantization) -> None:
    model = quantized(quantization)
    for part, scheme in (
        (model.language_model, quantization.scheme),
        (model.vision_model, quantization.vision),
        (model.abstractor, None),
    ):
        for module in part.modules():
            if isinstance(module, Linear):
                kinds = {"int8": ops.Int8Weight, "int4": ops.Int4Weight, None: torch.nn.Parameter}
                assert type(module.operand) is kinds[scheme]
    assert isinstance(model.language_model.model.embed_tokens.weight, torch.nn.Parameter)
    assert model.config.quantization == quantization
    shapes = {name: (v.shape, v.dtype) for name, v in views(model).items()}
    assert shapes == {name: (v.shape, v.dtype) for name, v in views(empty_model(model.config)).items()}


@pytest.mark.parametrize("quantization", ALL, ids=str)
@torch.inference_mode()
def test_it_computes_what_its_dequantized_weights_do(quantization: Quantization) -> None:
    model = quantized(quantization)
    dense = copy.deepcopy(model)
    dequantize_(dense)
    assert dense.config == Golden("micro").fresh_model().config
    assert dense.state_dict().keys() == Golden("micro").fresh_model().state_dict().keys()
    assert torch.equal(logits(model), logits(dense))
    pixels = Golden("micro").pixels([0])
    assert torch.equal(model.encode_images(pixels), dense.encode_images(pixels))


@torch.inference_mode()
def test_fewer_bits_are_further_from_the_model() -> None:
    exact = logits(Golden("micro").fresh_model())
    int8, int4 = (
        (logits(quantized(Quantization(s))) - exact).norm() / exact.norm() for s in ("int8", "int4")
    )
    assert 0 < int8 < 0.02
    assert int8 < int4 < 0.3


def test_casting_a_model_leaves_codes_and_scales_alone() -> None:
    model = quantized(Quantization("int4", "int8"))
    before = {name: w.scale.clone() for name, w in packed_views(model).items()}
    model.to(torch.bfloat16)
    assert model.dtype == torch.bfloat16
    for name, weight in packed_views(model).items():
        assert torch.equal(weight.scale, before[name])
        assert weight.scale.dtype == before[name].dtype


def test_moving_to_another_device_moves_all_of_it() -> None:
    model = quantized(Quantization("int4")).to("meta")
    weight = model.language_model.lm_head.weight
    assert isinstance(weight, PackedWeight)
    assert weight.device.type == weight.scale.device.type == "meta"


def test_updates_on_quantized_weights_train_as_on_the_dense_ones() -> None:
    gradients = []
    model = quantized(Quantization("int4"))
    dense = copy.deepcopy(model)
    dequantize_(dense)
    config = LoraConfig(dropout=0.0, target_modules=("q_proj", "v_proj", "down_proj"))
    for each in (model, dense):
        trained = stage2(config, train_abstractor=False).apply(each, seed=1)
        with torch.no_grad():
            for slot in lora_slots(each).values():
                if slot.pair is not None:
                    slot.pair.lora_B.fill_(0.01)
        hidden = each(PackedBatch.from_sequences(IDS))
        head = each.language_model.lm_head.operand
        ops.linear_cross_entropy(hidden, head, torch.arange(len(hidden))).backward()
        gradients.append({name: p.grad for name, p in trained.items()})
    assert len(gradients[0]) > 4
    for name, gradient in gradients[0].items():
        assert gradient is not None
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("stage", "quantization"),
    [(FULL_LLAMA, Quantization("int8")), (STAGE1, Quantization(None, "int8"))],
    ids=["llama", "vision"],
)
def test_quantized_weights_do_not_train(stage: object, quantization: Quantization) -> None:
    with pytest.raises(UnsupportedError, match=r"which is held as .*quantized weights stay frozen"):
        stage.apply(quantized(quantization))  # type: ignore[attr-defined]


def test_what_is_not_quantized_trains_beside_it() -> None:
    STAGE1.apply(quantized(Quantization("int4")))
    stage2().apply(quantized(Quantization("int4", "int8")))


def test_updates_are_not_merged_into_quantized_weights() -> None:
    model = quantized(Quantization("int4"))
    attach(model, LoraConfig())
    with pytest.raises(UnsupportedError, match="q_proj is quantized, and rounding would lose"):
        merge_(model)


@pytest.mark.parametrize("quantization", ALL, ids=str)
@torch.inference_mode()
def test_laid_out_for_a_machine_it_computes_the_same_but_for_rounded_inputs(
    quantization: Quantization, cpu_library: object
) -> None:
    model = quantized(quantization)
    plain = copy.deepcopy(model)
    lay_out_(model)
    packed = [module for module in model.modules() if isinstance(module, PackedWeight)]
    assert packed
    assert all(weight.laid_out for weight in packed)
    for given in (logits, lambda each: each.vision_model(Golden("micro").pixels([0]))):
        wanted = given(plain)
        assert (given(model) - wanted).norm() < 0.03 * wanted.norm()


@pytest.mark.parametrize("quantization", ALL, ids=str)
def test_a_model_that_is_laid_out_is_written_as_it_was(
    quantization: Quantization, cpu_library: object, tmp_path: Path
) -> None:
    model = quantized(quantization)
    save_model(model, tmp_path / "plain")
    lay_out_(model)
    lay_out_(model)  # again: nothing happens
    save_model(model, tmp_path / "laid_out")
    save_model(model, tmp_path / "dense", change=lambda name, tensor: tensor)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "laid_out")]
    assert files[0] == files[1]
    dequantize_(model)
    written = views(load_model(tmp_path / "dense"))
    assert all(torch.equal(view, written[name]) for name, view in views(model).items())


def test_a_layout_moves_and_copies_with_its_model(cpu_library: object) -> None:
    model = quantized(Quantization("int4"))
    lay_out_(model)
    wanted = logits(model)
    assert torch.equal(logits(copy.deepcopy(model)), wanted)
    weight = model.to("meta").language_model.lm_head.weight
    assert isinstance(weight, PackedWeight)
    assert weight.device.type == "meta"


def test_names() -> None:
    assert [str(q) for q in ALL] == ["int8", "int4", "int4-g16, vision int8", "vision int8"]
