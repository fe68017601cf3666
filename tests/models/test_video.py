"""The video release's model against the original's numbers (tests/golden/video_tiny)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from owl_fast.models.batch import PackedBatch
from owl_fast.models.owl import Owl
from owl_fast.models.temporal import LocalTemporal
from tests.golden_data import VideoRelease
from tests.tolerances import ACTIVATION

GOLDEN = VideoRelease()


@pytest.fixture(scope="module")
def model() -> Owl:
    return GOLDEN.fresh_model()


def difference(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return (ours.float() - theirs).abs().max().item()


@torch.inference_mode()
def test_vision_tower_layer_by_layer(model: Owl) -> None:
    stored, tower = GOLDEN.tensors("vision"), model.vision_model
    seen = [tower.embeddings(GOLDEN.frames)]
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out: seen.append(out)) for layer in tower.encoder.layers
    ]
    last = tower(GOLDEN.frames, len(GOLDEN.frames))
    for hook in hooks:
        hook.remove()
    for index, state in enumerate(seen):
        assert difference(state[None], stored[f"video.hidden.{index}"]) < ACTIVATION, index
    assert f"video.hidden.{len(seen)}" not in stored
    assert difference(last[None], stored["video.last_hidden_state"]) < ACTIVATION


@torch.inference_mode()
def test_rows_of_a_picture_and_of_a_video(model: Owl) -> None:
    stored = GOLDEN.tensors("vision")
    assert difference(model.encode_images(GOLDEN.picture[None]), stored["image_embeds"]) < ACTIVATION
    assert difference(model.encode_videos(GOLDEN.frames[None]), stored["video_embeds"]) < ACTIVATION


@torch.inference_mode()
def test_videos_beside_each_other_do_not_mix(model: Owl) -> None:
    both = torch.stack((GOLDEN.frames, GOLDEN.frames.flip(0)))
    together = model.encode_videos(both)
    for i, frames in enumerate(both):
        assert difference(together[i], model.encode_videos(frames[None])[0]) < ACTIVATION
    assert difference(together[0], together[1]) > 100 * ACTIVATION  # the order of frames counts


@torch.inference_mode()
def test_a_video_of_one_frame_is_still_a_video(model: Owl) -> None:
    """The original skips the temporal modules then; here they see zeros before and after."""
    picture = GOLDEN.picture[None]
    alone = model.encode_videos(picture[None])
    assert difference(alone, model.encode_images(picture)) > 100 * ACTIVATION
    features = model.vision_model(picture, 1)
    queries = torch.cat((model.query_tokens, model.temporal_query_tokens), 1)
    assert difference(alone, model.abstractor.forward_videos(queries, features)) == 0


@pytest.mark.parametrize("case", ["video", "image", "image_and_video"])
@torch.inference_mode()
def test_language_model(model: Owl, case: str) -> None:
    stored = GOLDEN.tensors(f"generate_{case}")
    ids = stored["input_ids"][0].tolist()
    kinds = [i for i, before in zip(ids, [0, *ids], strict=False) if i < 0 and i != before]
    rows = [
        model.encode_images(GOLDEN.picture[None]) if kind == -1 else model.encode_videos(GOLDEN.frames[None])
        for kind in kinds
    ]
    batch = PackedBatch.from_sequences([ids], torch.cat(rows).flatten(0, 1))
    assert difference(model.embed(batch)[None], stored["inputs_embeds"]) < ACTIVATION
    assert difference(model.logits(model(batch))[-1:], stored["first_logits"]) < ACTIVATION


def test_time_is_convolved_as_by_the_original() -> None:
    """The adapter in float64 against torch's own 3-d convolutions over (channel, time, row, column)."""
    generator = torch.Generator().manual_seed(0)
    adapter = LocalTemporal(8).double()
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.randn(2 * 5, 1 + 9, 8, generator=generator, dtype=torch.float64)
    rows = adapter.ln(x[:, 1:]).view(2, 5, 3, 3, 8).permute(0, 4, 1, 2, 3)  # (B, E, T, rows, columns)
    down, conv, up = adapter.down_proj, adapter.conv, adapter.up_proj
    rows = torch.nn.functional.conv3d(rows, down.weight, down.bias)
    rows = torch.nn.functional.conv3d(rows, conv.weight, conv.bias, padding=(1, 0, 0), groups=4)
    rows = torch.nn.functional.conv3d(rows * torch.sigmoid(1.702 * rows), up.weight, up.bias)
    wanted = torch.cat((x[:, :1], rows.permute(0, 2, 3, 4, 1).reshape(10, 9, 8)), 1)
    assert torch.allclose(adapter(x, 5), wanted, rtol=1e-6, atol=1e-6)  # layer norm counts in float32
