"""The original's numbers through the GPU's kernels: vision, abstractor, language model, gradients."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from owl_fast import lora, ops
from owl_fast.checkpoints import load_model
from owl_fast.models.batch import PackedBatch
from owl_fast.models.owl import Owl
from owl_fast.training import pack
from owl_fast.training.objective import token_loss
from tests.golden_data import NAMES, FirstRelease, Golden, VideoRelease
from tests.tolerances import ACTIVATION, LOSS
from tests.training.test_golden import (
    CASES,
    case_ids,
    check_gradients,
    checkpoint_tensors,
    encoded,
    folder_without_dropout,
)


@pytest.fixture(autouse=True)
def _kernels(device: torch.device) -> Iterator[None]:
    with ops.kernels(True):
        yield


@pytest.fixture(scope="module", params=NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return (ours.float().cpu() - theirs).abs().max().item()


def outputs_of(layers: nn.ModuleList) -> list[Tensor]:
    """Filled with each layer's output in order, whenever the model runs."""
    seen: list[Tensor] = []
    for layer in layers:
        layer.register_forward_hook(lambda _m, _a, out: seen.append(out))
    return seen


@torch.inference_mode()
def test_pictures(golden: Golden, device: torch.device) -> None:
    stored, model = golden.tensors("vision"), golden.fresh_model().to(device)
    vision, gathered = (
        outputs_of(encoder.layers) for encoder in (model.vision_model.encoder, model.abstractor.encoder)
    )
    features = model.vision_model(golden.pixels(range(3)).to(device))
    rows = model.abstract(features)
    assert difference(features, stored["vision.last_hidden_state"]) < ACTIVATION
    for index, state in enumerate(vision, start=1):
        assert difference(state, stored[f"vision.hidden.{index}"]) < ACTIVATION, f"vision layer {index}"
    for index, state in enumerate(gathered):
        assert difference(state, stored[f"abstractor.layer.{index}"]) < ACTIVATION, f"abstractor {index}"
    assert len(gathered) == model.config.abstractor.num_hidden_layers
    assert difference(rows[:, :-1], stored["abstractor.visual_fc"]) < ACTIVATION
    assert difference(rows, stored["visual_embeds"][:3]) < ACTIVATION


@torch.inference_mode()
def test_video(device: torch.device) -> None:
    release = VideoRelease()
    model = release.fresh_model().to(device)
    rows = model.encode_videos(release.frames[None].to(device))
    assert difference(rows, release.tensors("vision")["video_embeds"]) < ACTIVATION


@torch.inference_mode()
def test_first_release(device: torch.device) -> None:
    """One more key and value for all pictures."""
    release = FirstRelease()
    model = release.fresh_model().to(device)
    stored = release.tensors("vision")
    rows = model.encode_images(release.pixels(range(2)).to(device))
    assert difference(rows, stored["visual_embeds"][:2]) < ACTIVATION


@torch.inference_mode()
def test_language_model(golden: Golden, device: torch.device) -> None:
    case = "forward_batch_image_and_text"
    stored, model = golden.tensors(case), golden.fresh_model().to(device)
    rows = golden.tensors("vision")["visual_embeds"][golden.meta(case)["image_index"]].flatten(0, 1)
    batch = PackedBatch.from_sequences(golden.sequences(case), rows.to(device), device=device)
    logits = model.logits(model(batch))
    for index, (start, end) in enumerate(pairwise(batch.bounds)):
        assert difference(logits[start:end][-8:], stored["logits_tail"][index]) < ACTIVATION, index


# The larger model, and training everything, take the interpreter minutes.
TRAINED = [
    pytest.param(name, case, marks=[] if name == "micro" and "full" not in case else pytest.mark.slow)
    for name, case in case_ids()
]


@pytest.mark.parametrize(("name", "case"), TRAINED)
def test_gradients(name: str, case: str, device: torch.device, tmp_path: Path) -> None:
    """Stage 1 learns through the frozen language model; LoRA with and without the abstractor; everything."""
    golden, (stage, from_adapter) = Golden(name), CASES[case]
    folder = folder_without_dropout(golden, tmp_path)
    model: Owl = load_model(folder, dtype=torch.float32)
    rows, stored, meta = model.config.image_rows, golden.tensors(case), golden.meta(case)
    if from_adapter:
        lora.load_adapter(model, folder / "adapter")
    stage.apply(model)
    model = model.to(device).train()
    batch = pack([encoded(golden, record, rows) for record in golden.meta("train_loss")["order"]], rows)
    loss = token_loss(model, batch) / batch.labelled
    loss.backward()
    assert loss.item() == pytest.approx(meta["losses_at_steps_0_1_2_and_after"][0], abs=LOSS)
    gradients = {n: t.cpu() for n, t in checkpoint_tensors(model, gradients=True).items()}
    check_gradients(gradients, stored, meta)
