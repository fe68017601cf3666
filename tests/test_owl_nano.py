"""The bundled model answers about pictures it never saw, drawn by a program it never saw."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from owl_fast import CheckpointError, Engine
from owl_fast.checkpoints.manifest import Manifest
from owl_fast.engine.opening import BUNDLED
from recipes.owl_nano.evaluate import cases, evaluate

ROOT = Path(__file__).resolve().parents[1]
MAX_BYTES = 12_000_000


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.from_pretrained(device="cpu", max_context=512)


def test_the_folder_is_small_and_described() -> None:
    files = [file for file in BUNDLED.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= MAX_BYTES
    names = {file.relative_to(BUNDLED).as_posix() for file in files}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.model"} <= names
    assert "adapter/adapter_config.json" in names
    for folder in (BUNDLED, BUNDLED / "adapter"):
        manifest = Manifest.read(folder)
        assert manifest is not None
        manifest.check()


def test_the_adapter_belongs_on_other_weights(engine: Engine) -> None:
    with pytest.raises(CheckpointError, match="was trained on 'owl-nano, stage 1' with weights of sha256"):
        engine.load_adapter("stage 2", BUNDLED / "adapter")
    engine.load_adapter("stage 2", BUNDLED / "adapter", check_base=False)
    engine.unload_adapter("stage 2")


@pytest.mark.parametrize(
    ("picture", "question", "answer"),
    [
        ("scene.png", "What color is the star?", "red"),
        ("scene.png", "Where is the circle?", "right"),
        ("two.png", "What color is the heart?", "yellow"),
        ("two.png", "Is there a red star?", "no"),
        ("sign.png", "What color is the diamond?", "orange"),
    ],
)
def test_examples(engine: Engine, picture: str, question: str, answer: str) -> None:
    parts = [{"type": "image", "image": ROOT / "examples" / picture}, {"type": "text", "text": question}]
    said = engine.generate([{"role": "user", "content": parts}], temperature=0, max_tokens=40)
    assert answer in said.text.lower().replace(".", " ").split()


def test_an_answer_can_go_on(engine: Engine) -> None:
    parts = [
        {"type": "image", "image": ROOT / "examples/scene.png"},
        {"type": "text", "text": "Where is the circle?"},
    ]
    question = {"role": "user", "content": parts}
    whole = engine.generate([question], temperature=0, max_tokens=40).text
    for cut in (whole.index(" "), whole.rindex(" ")):
        begun = {"role": "assistant", "content": whole[:cut]}
        assert engine.generate([question, begun], temperature=0, max_tokens=40).text == whole[cut:]


def test_the_command_of_the_readme_prints_the_answer_alone() -> None:
    command = [
        sys.executable,
        "-m",
        "owl_fast.chat",
        "-i",
        "examples/scene.png",
        "-p",
        "What color is the star?",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "The star is red.\n"
    assert "demonstration" in done.stderr


def test_unseen_pictures_of_another_program(engine: Engine) -> None:
    rates = evaluate(engine, "blind", cases("blind", 6, 7), bar=False)
    right = sum(rate * count for rate, count in rates.values())
    total = sum(count for _, count in rates.values())
    assert right / total >= 0.85, rates  # the full table is in the model card
