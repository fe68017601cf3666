"""What is exported gives torch's numbers in ONNX Runtime, for batches of any size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from owl_fast import Engine, ops, quantize
from owl_fast.checkpoints import load_model
from owl_fast.checkpoints.load import empty_model
from owl_fast.config import OwlConfig, Quantization, VisionConfig
from owl_fast.engine.onnx_vision import FILE, Session
from owl_fast.export.onnx_file import Gap, write_onnx
from owl_fast.export.pictures import PicturePart
from owl_fast.models.layers import init_weights
from recipes.owl_nano.evaluate import answer_all, cases, judged
from recipes.owl_nano.scoring import accuracies
from tests.export.exports import EXAMPLES, MODELS, Model
from tests.golden_data import Golden

Exported = Callable[[str, str, str], Path]
MOST_ERROR = 1e-4
ROWS = "vision+abstractor"
# First picture and number of pictures of a batch.
BATCHES = ((0, 1), (7, 1), (1, 2), (5, 3), (2, 4), (3, 5), (0, 8))
SHAPES = [
    pytest.param(name, part, start, count, id=f"{name}-{part}-from{start}-N{count}", marks=marks)
    for name, part, marks in (
        ("tiny", ROWS, ()),
        ("micro", "vision", ()),
        ("owl-nano", ROWS, ()),
        ("video", ROWS, pytest.mark.slow),
        ("tiny", "vision", pytest.mark.slow),
        ("micro", ROWS, pytest.mark.slow),
        ("first-release", ROWS, pytest.mark.slow),
        ("owl-nano", "vision", pytest.mark.slow),
    )
    for start, count in BATCHES
]


@pytest.mark.parametrize(("name", "part", "start", "count"), SHAPES)
@torch.inference_mode()
def test_numbers_are_torchs(name: str, part: str, start: int, count: int, exported: Exported) -> None:
    pixels = MODELS[name].pictures()[start : start + count]
    ours = Session(exported(name, part, "fp32"))(pixels)
    with ops.kernels(False):
        wanted = MODELS[name].reference(part)(pixels)
    assert ours.shape == wanted.shape
    assert (ours - wanted).abs().max() <= MOST_ERROR


def test_numbers_are_the_originals(exported: Exported) -> None:
    golden = Golden("tiny")
    rows = Session(exported("tiny", ROWS, "fp32"))(golden.pixels(range(5)))
    assert (rows - golden.tensors("vision")["visual_embeds"]).abs().max() <= MOST_ERROR


@torch.inference_mode()
def test_half_precision_points_the_same_way(exported: Exported) -> None:
    pixels = MODELS["owl-nano"].pictures()
    wanted = MODELS["owl-nano"].reference(ROWS)(pixels)
    path = exported("owl-nano", ROWS, "fp16")
    gap = Gap.between([Session(path)(pixels)], [wanted])
    assert 1 - 1e-5 < gap.cosine < 1 - 1e-12
    assert path.stat().st_size < 0.6 * exported("owl-nano", ROWS, "fp32").stat().st_size


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_owl_nano_answers_the_same(dtype: str, exported: Exported) -> None:
    file = exported("owl-nano", ROWS, dtype)
    engines = [
        Engine.from_pretrained(device="cpu", dtype="fp32", max_context=256, vision=vision)
        for vision in (None, f"onnx:{file.parent}")
    ]
    asked = [
        ("scene.png", "What color is the star?"),
        ("two.png", "Is there a red star?"),
        ("sign.png", "What color is the diamond?"),
    ]
    messages = [
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": EXAMPLES / file}, {"type": "text", "text": text}],
            }
        ]
        for file, text in asked
    ]

    def answers(engine: Engine) -> tuple[list[str], torch.Tensor]:
        texts = [engine.generate(m, temperature=0, max_tokens=40).text for m in messages]
        scores = [sum(engine.score(m, None, text)) for m, text in zip(messages, texts, strict=True)]
        return texts, torch.tensor(scores)

    (texts, scores), (texts_of_file, scores_of_file) = map(answers, engines)
    assert texts_of_file == texts
    assert (scores_of_file - scores).abs().max() < (1e-4 if dtype == "fp32" else 1e-2)


@torch.inference_mode()
def test_quantized_weights_are_written_dense(tmp_path: Path) -> None:
    folder = tmp_path / "quantized"
    flags = ["--scheme", "int4", "--quant-vision", "int8", "--dtype", "fp32", "--device", "cpu", "--plain"]
    assert quantize.main([str(MODELS["micro"].path), "--out", str(folder), *flags]) == 0
    pixels = MODELS["micro"].pictures()[:2]
    features = Session(Model(folder).export(tmp_path / "out"))(pixels)
    held = load_model(MODELS["micro"].path, dtype=torch.float32, quantization=Quantization("int4", "int8"))
    assert (features - held.vision_model(pixels)).abs().max() <= MOST_ERROR
    assert (features - MODELS["micro"].reference("vision")(pixels)).abs().max() > 10 * MOST_ERROR


def test_a_gap_sees_what_is_no_number() -> None:
    features = torch.ones(1, 2, 3)
    broken = features.clone()
    broken[0, 1, 1] = float("nan")
    gap = Gap.between([features, broken], [features, features])
    assert gap.error != gap.error
    assert gap.cosine != gap.cosine
    assert Gap.between([features], [features]).error == 0


@pytest.mark.slow
@torch.inference_mode()
def test_more_than_a_protobuf_message_holds(tmp_path: Path) -> None:
    """2.5 GB of weights in one wide layer."""
    config = OwlConfig.mplug_owl_7b()
    vision = VisionConfig(7168, 28672, num_hidden_layers=1, num_attention_heads=56, image_size=28)
    model = empty_model(replace(config, vision=vision))
    tower = model.vision_model.to_empty(device="cpu").requires_grad_(False).eval()
    init_weights(tower, seed=0)
    path = write_onnx(PicturePart(model, "vision"), tmp_path, {})
    assert (tmp_path / f"{FILE}.data").stat().st_size > 2 << 30
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    gap = Gap.between([Session(path)(pixels)], [tower(pixels)])
    (tmp_path / f"{FILE}.data").unlink()
    assert gap.error <= MOST_ERROR


@pytest.mark.slow
def test_owl_nanos_scores(exported: Exported) -> None:
    """Held-out questions: as many right answers with the float16 file as with torch, within one per task."""
    questions = cases("blind", per_task=20, seed=1)

    def scores(vision: str | None = None) -> dict[str, tuple[float, int]]:
        engine = Engine.from_pretrained(device="cpu", max_context=512, max_batch=16, vision=vision)
        done = [
            pair
            for start in range(0, len(questions), 16)
            for pair in answer_all(engine, questions[start : start + 16])
        ]
        return accuracies([verdict for case, said in done for verdict in judged(case, said)])

    wanted = scores()
    file = exported("owl-nano", ROWS, "fp16")
    for task, (accuracy, count) in scores(f"onnx:{file.parent}").items():
        assert abs(accuracy - wanted[task][0]) * count <= 1.01, task
