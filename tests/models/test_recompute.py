"""What layers keep and what they compute again: the same gradients bit for bit, in less memory."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor

from benchmarks.live_memory import LiveMemory
from owl_fast import ops
from owl_fast.config import Quantization
from owl_fast.lora import LoraConfig
from owl_fast.models.batch import PackedBatch
from owl_fast.models.owl import Owl
from owl_fast.models.recompute import LEVELS, Layer, Level, run
from owl_fast.quantization.whole import quantize_
from owl_fast.training import STAGE1, pack, stage2
from owl_fast.training.objective import token_loss
from owl_fast.training.stages import Stage
from tests.training.owls import ROWS, made_up, small_owl

LORA = LoraConfig(r=4, dropout=0.3)
STAGES = {"stage1": STAGE1, "stage2": stage2(LORA)}


def prepared(stage: Stage, quantization: Quantization | None = None) -> Owl:
    model = small_owl()
    if quantization is not None:
        quantize_(model, quantization)
    stage.apply(model)
    return model.train()


def at(model: Owl, level: Level) -> Owl:
    for module in model.modules():
        if isinstance(module, Layer):
            module.level = level
    return model


def gradients(model: Owl) -> dict[str, Tensor]:
    torch.manual_seed(3)
    token_loss(model, pack([made_up(0, 1), made_up(1), made_up(2, 2)], ROWS)).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("scheme", [None, "int8", "int4"])
def test_gradients_do_not_change(name: str, scheme: str | None) -> None:
    """Dropout included: masks come from the same random numbers."""
    model = prepared(STAGES[name], None if scheme is None else Quantization(scheme, group=4))
    whole = gradients(at(model, "whole"))
    assert len(whole) > 5
    for level in LEVELS[1:]:
        found = gradients(at(model, level))
        assert found.keys() == whole.keys()
        assert all(torch.equal(found[key], whole[key]) for key in whole), level


def test_the_kernels_gradients_do_not_change(device: torch.device) -> None:
    model = prepared(stage2(LoraConfig(r=4))).to(device)
    layer, batch = (
        model.language_model.model.layers[0],
        PackedBatch.from_sequences([[1, 2, 3]], device=device),
    )
    x, angles = torch.randn(3, 16).to(device).requires_grad_(), torch.ones(3, 4, device=device)
    found = []
    for level in LEVELS[:3]:
        at(model, level).zero_grad()
        torch.manual_seed(3)
        with ops.kernels(True):
            (dx,) = torch.autograd.grad(run(layer, x, angles, angles, batch, 0).square().sum(), x)
        found.append(dx)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_results_that_are_kept_are_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = prepared(STAGES["stage2"]), []
    attend = ops.varlen_attention_reference
    monkeypatch.setattr(ops, "varlen_attention_cpu_takes", lambda *args: False)
    monkeypatch.setattr(ops, "varlen_attention_reference", lambda *args: calls.append(1) or attend(*args))
    for level in LEVELS:
        calls.clear()
        gradients(at(model, level))
        again = level == "input"
        assert len(calls) == len(model.language_model.model.layers) * (1 + again), level


def test_without_gradients_nothing_is_kept() -> None:
    model = at(prepared(STAGES["stage2"]), "attention").eval()
    batch = pack([made_up(0, 1)], ROWS)
    with torch.no_grad():
        expected = token_loss(at(model, "whole"), batch)
        assert torch.equal(token_loss(at(model, "attention"), batch), expected)


def test_kept_results_go_with_the_graph() -> None:
    made: list[weakref.ref[ops.Kept]] = []

    class Watched(ops.Kept):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)  # type: ignore[arg-type]
            made.append(weakref.ref(self))

    gc.disable()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ops, "Kept", Watched)
            gradients(at(prepared(STAGES["stage2"]), "products"))
        assert made
        assert all(reference() is None for reference in made)
    finally:
        gc.enable()


@pytest.mark.parametrize("part", ["vision", "llama"])
def test_levels_keep_less_and_less(part: str) -> None:
    model, sizes = prepared(STAGE1 if part == "vision" else stage2(LoraConfig(r=4))), []
    x = torch.randn(1, 5, 16, requires_grad=True)
    for level in LEVELS:
        at(model, level)
        with LiveMemory() as live:
            if part == "vision":
                y = run(model.vision_model.encoder.layers[0], x, None)
            else:
                batch = PackedBatch.from_sequences([[1, 2, 3, 4, 5]])
                angles = torch.ones(5, 4)
                y = run(model.language_model.model.layers[0], x[0], angles, angles, batch, 0)
            sizes.append(live.bytes)
        y.sum().backward()
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] > sizes[3] >= y.nbytes
    assert sizes[1] > 2 * sizes[2]
