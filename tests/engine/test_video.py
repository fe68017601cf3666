"""Videos through the engine: the original's answers, message parts, and models that take none."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from owl_fast import Engine, Video
from owl_fast.checkpoints import load_model, open_source, save_model
from owl_fast.errors import ImageError, PromptError, UnsupportedError
from tests.golden_data import Golden, VideoRelease, assert_same_weights
from tests.tolerances import ACTIVATION, SAME_RUN

GOLDEN = VideoRelease()
PICTURE = "the stored picture"


class StoredPixels:
    """A processor that knows the reference pixels: a word for the picture, numbers for the frames."""

    def __call__(self, source: object) -> Tensor:
        assert source == PICTURE
        return GOLDEN.picture

    def frame(self, source: Any) -> Tensor:
        return GOLDEN.frames[source]


FRAMES = list(range(len(GOLDEN.frames)))


@functools.cache
def stored_engine() -> Engine:
    source = open_source(GOLDEN.checkpoint)
    processor: Any = StoredPixels()
    return Engine(load_model(source), source.tokenizer(), processor, max_batch=3)


@functools.cache
def engine_of(name: str) -> Engine:
    path = GOLDEN.checkpoint if name == "video" else Golden(name).checkpoint
    return Engine.from_pretrained(path, device="cpu", dtype="fp32", max_batch=1)


def pictures(count: int, size: tuple[int, int] = (20, 12)) -> list[Image.Image]:
    return [Image.new("RGB", size, (40 * i, 255 - 40 * i, 90)) for i in range(count)]


@pytest.mark.parametrize("case", ["video", "image", "image_and_video"])
def test_greedy_answers_are_the_originals(case: str) -> None:
    stored, prompt = GOLDEN.tensors(f"generate_{case}"), GOLDEN.meta(f"generate_{case}")["prompt"]
    media = {"image": [PICTURE], "video": [FRAMES], "image_and_video": [PICTURE, Video(FRAMES)]}[case]
    out = stored_engine().generate(prompt, images=media, max_tokens=24)
    assert out.token_ids == stored["new_ids"][0].tolist()
    assert out.logprobs == pytest.approx(stored["logprobs"][0].tolist(), abs=ACTIVATION)
    assert out.usage.prompt_tokens == stored["input_ids"].shape[1]
    assert out.usage.image_tokens == int((stored["input_ids"] < 0).sum())


def test_several_media_each_keep_their_own_rows() -> None:
    """In the original every picture of a row shows the first one."""
    engine = stored_engine()
    rows = engine.encode_images([PICTURE, Video(FRAMES), Video(FRAMES[::-1]), PICTURE])
    stored = GOLDEN.tensors("vision")
    for row, wanted in ((0, "image_embeds"), (1, "video_embeds"), (3, "image_embeds")):
        assert (rows[row] - stored[wanted][0]).abs().max() < ACTIVATION
    assert (rows[1] - rows[2]).abs().max() > 100 * ACTIVATION
    prompt = "Human: <|video|>\nHuman: <image>\nHuman: <|video|>\nAI: "
    there = engine.score(prompt, [Video(FRAMES), PICTURE, Video(FRAMES[::-1])], "owl")
    back = engine.score(prompt, [Video(FRAMES[::-1]), PICTURE, Video(FRAMES)], "owl")
    assert max(abs(a - b) for a, b in zip(there, back, strict=True)) > 100 * ACTIVATION


def test_a_batch_with_videos_equals_one_at_a_time() -> None:
    engine = stored_engine()
    requests = [
        {"prompt": GOLDEN.meta("generate_video")["prompt"], "images": [FRAMES]},
        {"prompt": "Human: Hello\nAI: "},
        {"prompt": GOLDEN.meta("generate_image_and_video")["prompt"], "images": [PICTURE, FRAMES]},
    ]
    together = engine.generate(requests, max_tokens=8)
    for request, out in zip(requests, together, strict=True):
        alone = engine.generate([request], max_tokens=8)[0]
        assert out.token_ids == alone.token_ids
        assert out.logprobs == pytest.approx(alone.logprobs, abs=SAME_RUN)


def test_a_message_part_is_the_raw_place() -> None:
    engine = engine_of("video")
    frames = pictures(6)
    content = [{"type": "video", "video": frames}, {"type": "text", "text": "What is it?"}]
    spoken = engine.generate([{"role": "user", "content": content}], max_tokens=4)
    header = engine.generate(
        [{"role": "system", "content": ""}, {"role": "user", "content": content}], max_tokens=4
    )
    raw = engine.generate("Human: <|video|>\nHuman: What is it?\nAI: ", images=[frames], max_tokens=4)
    assert header.token_ids == raw.token_ids
    assert header.logprobs == pytest.approx(raw.logprobs, abs=SAME_RUN)
    assert spoken.usage.image_tokens == raw.usage.image_tokens == engine.config.image_rows


def test_num_frames_and_files(tmp_path: Path) -> None:
    engine = engine_of("video")
    frames = pictures(6)
    path = tmp_path / "clip.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    of = {n: engine.encode_images([Video(frames, n)]) for n in (1, 4, 6)}
    assert (of[4] - engine.encode_images([Video(str(path))])).abs().max() < 0.05  # 256 colours
    assert (of[1] - of[4]).abs().max() > 100 * ACTIVATION
    part = {"type": "video", "video": frames, "num_frames": 6}
    question = [{"role": "user", "content": [part]}]
    raw = engine.generate("Human: <|video|>\nAI: ", images=[Video(frames, 6)], max_tokens=3).logprobs
    system = {"role": "system", "content": ""}
    assert engine.generate([system, *question], max_tokens=3).logprobs == pytest.approx(raw, abs=SAME_RUN)


def test_pictures_are_cropped_and_frames_squeezed() -> None:
    processor = open_source(GOLDEN.checkpoint).processor()
    wide = Image.new("RGB", (90, 30), "red")
    wide.paste("blue", (30, 0, 60, 30))
    middle = processor(Image.new("RGB", (30, 30), "blue"))
    inside = slice(2, -2)  # at the edges the red shines through
    assert torch.equal(processor(wide)[:, :, inside], middle[:, :, inside])
    assert not torch.equal(processor.frame(wide)[:, :, inside], middle[:, :, inside])


def test_models_without_videos_see_pictures() -> None:
    engine = engine_of("micro")
    frames = pictures(9)
    video = [{"type": "video", "video": frames}, {"type": "text", "text": "Hm?"}]
    shown = [{"type": "image", "image": frames[i]} for i in (1, 3, 5, 7)]
    out = engine.generate([{"role": "user", "content": video}], max_tokens=3)
    same = engine.generate([{"role": "user", "content": [*shown, video[1]]}], max_tokens=3)
    assert (out.token_ids, out.usage.image_tokens) == (same.token_ids, 4 * engine.config.image_rows)
    assert out.logprobs == pytest.approx(same.logprobs, abs=SAME_RUN)
    with pytest.raises(PromptError, match=r"write <\|video\|> there"):
        engine.generate("Human: <image>\nAI: ", images=[Video(frames)], max_tokens=1)
    with pytest.raises(UnsupportedError, match="takes no videos"):
        engine.encode_images([Video(frames)])
    # Words, as in the original.
    plain = engine.generate("Human: <|video|>\nAI: ", max_tokens=1)
    assert plain.usage.image_tokens == 0


def test_what_does_not_fit_is_said() -> None:
    engine = engine_of("video")
    with pytest.raises(PromptError, match=r"2 .*place\(s\), 1 picture"):
        engine.generate("Human: <|video|><image>\nAI: ", images=[pictures(2)], max_tokens=1)
    part = {"type": "video", "video": pictures(2), "num_frames": 0}
    with pytest.raises(ImageError, match="num_frames 0"):
        engine.generate([{"role": "user", "content": [part]}], max_tokens=1)
    with pytest.raises(PromptError, match='"type": "video"'):
        engine.generate([{"role": "user", "content": [{"type": "video"}]}], max_tokens=1)


def test_saved_as_a_folder_it_stays_a_video_model(tmp_path: Path) -> None:
    model = load_model(GOLDEN.checkpoint)
    save_model(model, tmp_path / "out", side_files=GOLDEN.checkpoint)
    source = open_source(tmp_path / "out")
    assert source.config == model.config
    assert (source.config.video, source.config.abstractor.intermediate_size) == (True, 256)
    assert_same_weights(load_model(source), model)
