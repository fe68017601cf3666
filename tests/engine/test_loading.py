"""What an engine refuses to be made of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from owl_fast import CheckpointError, Engine
from owl_fast.checkpoints import read_tensors, write_tensors
from tests.golden_data import Golden

GOLDEN = Golden("micro")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN.checkpoint, tmp_path / "model"))


def test_pictures_of_another_size_than_the_towers(folder: Path) -> None:
    path = folder / "preprocessor_config.json"
    raw = json.loads(path.read_text()) | {"size": 64, "crop_size": 64}
    path.write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=r"64 pixels a side, .* takes 32"):
        Engine.from_pretrained(folder, device="cpu", max_batch=1, max_context=64)


def test_a_tokenizer_of_another_model(folder: Path) -> None:
    other = Golden("tiny").checkpoint / "tokenizer.model"
    with pytest.raises(CheckpointError, match=rf"{other}: a tokenizer of \d+ pieces does not belong"):
        Engine.from_pretrained(folder, tokenizer=other, config={"text_config": {"vocab_size": 300}})


def test_weights_that_are_no_numbers_need_permission(folder: Path) -> None:
    path = min(folder.glob("*.bin"))
    tensors = read_tensors(path)
    name = min(name for name, tensor in tensors.items() if not name.endswith("inv_freq"))
    tensors[name].view(-1)[0] = float("nan")
    write_tensors(path, tensors)
    options = {"device": "cpu", "max_batch": 1, "max_context": 64}
    with pytest.raises(CheckpointError, match=f"{path.name}: tensor {name} holds NaN"):
        Engine.from_pretrained(folder, **options)
    Engine.from_pretrained(folder, allow_nonfinite=True, **options)
