"""OwlConfig: reads the original's config.json, refuses what cannot run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from owl_fast.config import OwlConfig
from owl_fast.errors import CheckpointError, OwlError, UnsupportedError
from tests.golden_data import NAMES, Golden


@pytest.fixture
def raw() -> dict[str, Any]:
    return json.loads((Golden("tiny").checkpoint / "config.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(name: str) -> None:
    config = OwlConfig.from_file(Golden(name).checkpoint / "config.json")
    assert OwlConfig.from_dict(config.to_dict()) == config


def test_sizes_of_the_golden_file(raw: dict[str, Any]) -> None:
    config = OwlConfig.from_dict(raw)
    assert (config.vision.hidden_size, config.vision.num_patches, config.image_rows) == (48, 16, 9)
    assert (config.llama.head_dim, config.llama.num_key_value_heads) == (16, 4)


def test_defaults_are_the_7b_model() -> None:
    config = OwlConfig.from_dict({"visual_abstractor_config": {"intermediate_size": 2816}})
    assert config == OwlConfig.mplug_owl_7b()
    assert config.image_rows == 65


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("text_config", "model_type", "bloom"),
        ("text_config", "hidden_act", "gelu"),
        ("text_config", "rope_scaling", {"type": "linear"}),
        (None, "model_type", "llava"),
        (None, "tie_word_embeddings", True),
    ],
)
def test_other_mathematics_is_refused(
    raw: dict[str, Any], section: str | None, name: str, value: Any
) -> None:
    (raw[section] if section else raw)[name] = value
    with pytest.raises(UnsupportedError, match=name):
        OwlConfig.from_dict(raw)


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("text_config", "hidden_size", 10**9),
        ("text_config", "num_hidden_layers", 10**6),
        ("text_config", "num_attention_heads", 7),
        ("text_config", "vocab_size", "512"),
        ("text_config", "rms_norm_eps", float("nan")),
        ("vision_config", "hidden_size", 64),
        ("vision_config", "patch_size", 0),
        ("vision_config", "patch_size", 57),
        ("vision_config", "image_size", True),
        ("visual_abstractor_config", "num_attention_heads", -1),
        (None, "num_query_tokens", 0),
        (None, "vision_config", [1]),
        (None, "video", 1),
        (None, "first_release", "yes"),
        ("visual_abstractor_config", "bias_kv", 1),
    ],
)
def test_bad_values_name_the_field(raw: dict[str, Any], section: str | None, name: str, value: Any) -> None:
    (raw[section] if section else raw)[name] = value
    with pytest.raises(CheckpointError, match=name):
        OwlConfig.from_dict(raw)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"a":' * 10000], ids=["empty", "list", "cut", "deep"])
def test_unreadable_files_name_the_path(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(OwlError, match=r"config\.json"):
        OwlConfig.from_file(path)
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        OwlConfig.from_file(path)
