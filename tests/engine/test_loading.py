"""What an engine refuses to be made of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from owl_fast import CheckpointError, Engine, ops
from owl_fast.checkpoints import read_tensors, write_tensors
from owl_fast.engine import opening
from owl_fast.errors import ParameterError, UnsupportedError
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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_batch": "8"}, "max_batch is '8'; wanted an integer of at least 1"),
        ({"cache_positions": "100"}, "cache_positions is '100'; wanted an integer"),
        ({"cache_positions": 32}, "cache_positions is 32, the context 64"),
        ({"picture_cache_mb": -1}, "picture_cache_mb is -1; wanted an integer of at least 0"),
        ({"speculation": 1.5}, "speculation is 1.5; wanted an integer of at least 0"),
        ({"kv_cache": "fp4"}, "kv_cache 'fp4'"),
    ],
    ids=lambda given: "-".join(given) if isinstance(given, dict) else "",
)
def test_sizes_that_make_no_sense_are_said_before_anything_is_read(
    options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "load_model", lambda *_, **__: pytest.fail("weights are read"))
    for quant in (None, "auto"):
        with pytest.raises(ParameterError, match=said):
            Engine.from_pretrained(GOLDEN.checkpoint, device="cpu", quant=quant, max_context=64, **options)


def test_exact_is_refused_where_rows_depend_on_each_other() -> None:
    with ops.kernels(False), pytest.raises(UnsupportedError, match="exact answers with float32 on cpu"):
        Engine.from_pretrained(GOLDEN.checkpoint, device="cpu", dtype="fp32", exact=True)
    with pytest.raises(UnsupportedError, match="exact answers with float16 on cpu"):
        Engine.from_pretrained(GOLDEN.checkpoint, device="cpu", dtype="fp16", exact=True)
