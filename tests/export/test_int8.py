"""`--int8`: near torch's numbers, whole or not at all, and what its pictures may be."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image

from owl_fast import Engine
from owl_fast.checkpoints import load_model
from owl_fast.engine.onnx_vision import DATA, FILE, Session
from owl_fast.export import int8
from owl_fast.export import onnx as command
from owl_fast.export.int8 import MOST_PICTURES, pictures, smooth_, write_int8
from owl_fast.export.onnx_file import Gap
from owl_fast.export.pictures import PicturePart
from owl_fast.images import ImageProcessor
from owl_fast.models.vision import VisionLayer
from recipes.owl_nano.evaluate import answer_all, cases, judged
from tests.export.exports import EXAMPLES, MODELS

Exported = Callable[[str, str, str], Path]
MICRO = MODELS["micro"].path
ROWS = "vision+abstractor"


def run(out: Path, *flags: str) -> int:
    return command.main([str(MICRO), "--out", str(out), "--plain", "--int8", *flags])


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


def micro_part() -> PicturePart:
    return PicturePart(load_model(MICRO, dtype=torch.float32), "vision")


def seen_by(part: PicturePart) -> list[torch.Tensor]:
    return pictures(None, ImageProcessor(part.image_size)).calibrate


@torch.inference_mode()
def test_rows_point_the_same_way(exported: Exported) -> None:
    pixels = MODELS["owl-nano"].pictures()
    path = exported("owl-nano", ROWS, "int8")
    gap = Gap.between([Session(path)(pixels)], [MODELS["owl-nano"].reference(ROWS)(pixels)])
    assert 0.999 < gap.mean < 1 - 1e-6
    assert gap.cosine > 0.98
    assert path.stat().st_size < 0.4 * exported("owl-nano", ROWS, "fp32").stat().st_size


def test_what_is_rounded(exported: Exported) -> None:
    """Weights of the linear layers, to 7 bits and a scale per output; norms and the rest stay as they are."""
    model = onnx.load(exported("owl-nano", ROWS, "int8"))
    onnx.checker.check_model(model, full_check=True)
    weights = [numpy_helper.to_array(weight) for weight in model.graph.initializer]
    rounded = [weight for weight in weights if weight.dtype == numpy.int8 and weight.ndim == 2]
    assert len(rounded) > 20
    assert {int(abs(weight).max()) for weight in rounded} <= {63, 64}
    large = [
        weight.shape for weight in weights if weight.dtype == numpy.float32 and weight.size > 192 * 192 * 3
    ]
    assert large == [(192, 3, 14, 14)]  # of the patches
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert (told["dtype"], told["part"]) == ("int8", ROWS)
    assert told["calibrated_on"] == "32 built-in pictures"
    assert model.producer_name == "owl_fast"


def test_owl_nano_answers_the_same(exported: Exported) -> None:
    folder = exported("owl-nano", ROWS, "int8").parent
    engines = [
        Engine.from_pretrained(device="cpu", max_context=256, vision=v) for v in (None, f"onnx:{folder}")
    ]
    for file, text in (
        ("scene.png", "What color is the star?"),
        ("two.png", "Is there a red star?"),
        ("sign.png", "What is written?"),
    ):
        parts = [{"type": "image", "image": EXAMPLES / file}, {"type": "text", "text": text}]
        messages = [{"role": "user", "content": parts}]
        wanted, ours = (engine.generate(messages, temperature=0, max_tokens=40).text for engine in engines)
        assert ours == wanted


@torch.no_grad()
def with_outliers(part: PicturePart) -> PicturePart:
    """The same function, with a few channels behind each norm thirty times as large."""
    for layer in part.vision_model.encoder.layers:
        assert isinstance(layer, VisionLayer)
        for norm, linear in (
            (layer.input_layernorm, layer.self_attn.query_key_value),
            (layer.post_attention_layernorm, layer.mlp.fc1),
        ):
            large = torch.ones(len(norm.weight))
            large[::10] = 30
            norm.weight *= large
            norm.bias *= large
            linear.operand.div_(large)  # type: ignore[union-attr]
    return part


@torch.inference_mode()
def test_large_channels_are_evened_out_and_results_stay() -> None:
    pixels = MODELS["micro"].pictures()
    wanted = micro_part()(pixels)
    part = with_outliers(micro_part())
    layer = part.vision_model.encoder.layers[0]
    assert isinstance(layer, VisionLayer)
    before = layer.input_layernorm.weight.abs().max()
    smooth_(part.vision_model, seen_by(part))
    assert layer.input_layernorm.weight.abs().max() < before / 3
    assert (part(pixels) - wanted).abs().max() < 1e-4


@torch.inference_mode()
def test_large_channels_do_not_spoil_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = MODELS["micro"].pictures()
    wanted = micro_part()(pixels)

    def off(name: str) -> float:
        part = with_outliers(micro_part())
        (tmp_path / name).mkdir()
        path = write_int8(part, tmp_path / name, {}, seen_by(part), lambda done, total: None)
        return 1 - Gap.between([Session(path)(pixels)], [wanted]).mean

    smoothed = off("smoothed")
    monkeypatch.setattr(int8, "smooth_", lambda *_: None)
    assert smoothed < off("plain") / 5


def test_pictures_of_a_folder_or_a_pattern(tmp_path: Path) -> None:
    processor = ImageProcessor(28)
    for index in range(5):
        Image.new("RGB", (8, 8), (50 * index, 0, 0)).save(tmp_path / f"{index}.png")
    (tmp_path / "note.txt").write_text("no picture")
    for data in (str(tmp_path), f"{tmp_path}/*"):
        seen = pictures(data, processor)
        assert (len(seen.calibrate), len(seen.compare)) == (4, 1)
        assert torch.equal(seen.compare[0][0], processor(tmp_path / "3.png"))
        assert seen.told == f"5 pictures of {data}"
    one = pictures(f"{tmp_path}/0.png", processor)
    assert torch.equal(one.calibrate[0], one.compare[0])


def test_too_many_pictures_are_spread(tmp_path: Path) -> None:
    for index in range(2 * MOST_PICTURES):
        (tmp_path / f"{index:04}.png").touch()
    files = int8._files(str(tmp_path))
    assert [int(file.stem) for file in files] == list(range(0, 2 * MOST_PICTURES, 2))


def test_built_in_pictures_are_the_same_everywhere() -> None:
    ours, again = (pictures(None, ImageProcessor(28)) for _ in range(2))
    assert (len(ours.calibrate), len(ours.compare)) == (24, 8)
    assert all(torch.equal(a, b) for a, b in zip(ours.calibrate, again.calibrate, strict=True))


def test_mistakes_get_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    for flags, said in (
        (["--dtype", "fp16"], "--int8 and --dtype fp16: name one"),
        (["--data", str(tmp_path / "empty")], "no pictures; wanted a folder or a pattern"),
        (["--data", str(tmp_path / "nowhere")], "no pictures"),
        (["--data", str(tmp_path / "broken")], "a.png': no readable PNG"),
    ):
        assert run(out, *flags) == 1
        assert said in error_of(capsys)
    assert command.main([str(MICRO), "--out", str(out), "--data", "x"]) == 1
    assert "pictures to calibrate --int8 on" in error_of(capsys)
    assert not out.exists()


def test_a_file_that_is_too_far_off_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = Session.__call__

    def wrong(self: Session, pixels: torch.Tensor) -> torch.Tensor:
        features = right(self, pixels)
        return features + features.abs().mean() * torch.randn(features.shape)

    monkeypatch.setattr(Session, "__call__", wrong)
    assert run(tmp_path / "out") == 1
    assert "8 bits may be too few" in error_of(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=repr)
def test_interrupted_it_leaves_nothing(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in the folder nor where temporary files go, which is within it."""
    before, seen = tempfile.tempdir, []

    def interrupt(*_: Any, **__: Any) -> None:
        seen.append(tempfile.gettempdir())
        raise error

    monkeypatch.setattr("onnxruntime.quantization.quantize_static", interrupt)
    assert run(tmp_path / "out") == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert list(tmp_path.iterdir()) == []
    assert Path(seen[0]).is_relative_to(tmp_path)
    assert tempfile.tempdir == before


@torch.inference_mode()
def test_large_weights_lie_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "EXTERNAL_BYTES", 0)
    assert run(tmp_path / "out") == 0
    assert {file.name for file in (tmp_path / "out").iterdir()} == {FILE, DATA, "owl_manifest.json"}
    pixels = MODELS["micro"].pictures()
    rows = Engine.from_pretrained(MICRO, device="cpu", vision=f"onnx:{tmp_path / 'out'}")
    gap = Gap.between([rows.model.vision_model(pixels)], [micro_part()(pixels)])
    assert gap.mean > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("part", ["vision", ROWS])
@pytest.mark.parametrize("drawing", ["own", "blind"])
def test_owl_nanos_scores(part: str, drawing: str, exported: Exported) -> None:
    """Held-out questions: at most a point of all right answers is lost."""
    questions = cases(drawing, per_task=100, seed=1)

    def right(vision: str | None) -> float:
        engine = Engine.from_pretrained(device="cpu", max_context=512, max_batch=16, vision=vision)
        verdicts = [
            verdict
            for start in range(0, len(questions), 16)
            for case, said in answer_all(engine, questions[start : start + 16])
            for _, verdict in judged(case, said)
        ]
        return sum(verdicts) / len(verdicts)

    assert right(f"onnx:{exported('owl-nano', part, 'int8').parent}") > right(None) - 0.01
