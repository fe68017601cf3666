"""Pictures with captions, and telling a model that sees from one that does not."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from owl_fast import Engine, doctor
from owl_fast.checkpoints import write_tensors
from owl_fast.doctor.pairs import PairScores, groups, ranking, score_pairs, stands_out
from owl_fast.engine.opening import BUNDLED


class Seer:
    """Knows which caption belongs to a picture, and how sure to be: nats between right and wrong."""

    def __init__(self, nats: float) -> None:
        self.nats = nats
        self.captions = {picture.tobytes(): words for group in groups() for picture, words in group}

    def score(self, prompt: str, images: Sequence[object], continuation: str) -> list[float]:
        (picture,) = images
        assert isinstance(picture, Image.Image)
        assert prompt.count("<image>") == 1
        right = self.captions[picture.tobytes()] == continuation
        return [-20.0, 0.0 if right else -self.nats]


def test_pictures_of_a_group_are_as_different_as_their_captions() -> None:
    for group in groups():
        assert len({picture.tobytes() for picture, _ in group}) == len(group)
        assert len({words for _, words in group}) == len(group)
        assert all(picture.size == (224, 224) for picture, _ in group)


def test_the_shapes_are_what_the_captions_say() -> None:
    colours, _, places, _ = groups()
    assert [picture.getpixel((112, 112)) for picture, _ in colours] == [
        (255, 0, 0),
        (0, 0, 255),
        (0, 128, 0),
        (255, 255, 0),
    ]
    spots = {"left": (45, 112), "right": (179, 112), "top": (112, 45), "bottom": (112, 179)}
    for picture, words in places:
        filled = {name for name, spot in spots.items() if picture.getpixel(spot) == (0, 0, 255)}
        assert {words.rstrip(".").split()[-1]} == filled


def test_a_seer_finds_all_and_a_blind_one_guesses() -> None:
    sure, blind = score_pairs(Seer(30.0)), score_pairs(Seer(0.0))
    assert sure.found == len(sure.chosen) == 16
    assert sure.mean == pytest.approx(0, abs=1e-9)
    assert blind.found == 0
    assert blind.mean == pytest.approx(-math.log(4))
    half = score_pairs(Seer(1.0))
    assert half.mean == pytest.approx(1 - math.log(math.e + 3))


def test_the_likelier_one_is_named_and_whether_it_stands_out() -> None:
    clear = {"8": PairScores((-1.4, -1.3, -1.5, -1.4)), "16": PairScores((-0.1, -0.2, -0.1, -0.1))}
    assert ranking(clear) == ["16", "8"]
    assert stands_out(clear)
    close = {"8": PairScores((-0.1, -1.0, -0.1, -0.3)), "16": PairScores((-0.1, -0.2, -0.4, -0.3))}
    assert ranking(close) == ["16", "8"]
    assert not stands_out(close)
    assert not stands_out({"8": PairScores((-0.1, -0.1)), "16": PairScores((-0.1, -0.1))})


def regrouped(fused: Tensor, heads: int, wanted: int) -> Tensor:
    """A fused q | k | v, (3E, ...), as it would be if the same three matrices were read with other heads."""
    parts = fused.view(heads, 3, fused.shape[0] // heads // 3, -1).unbind(1)
    return torch.stack([part.reshape(wanted, -1, part.shape[-1]) for part in parts], 1).reshape(fused.shape)


def nano_with(heads: int, folder: Path) -> Engine:
    """The bundled model, which has 6 heads, as a file would be read that does not tell them."""
    folder.mkdir()
    for name in ("tokenizer.model", "preprocessor_config.json"):
        shutil.copy(BUNDLED / name, folder)
    config = json.loads((BUNDLED / "config.json").read_text())
    for part in ("vision_config", "visual_abstractor_config"):
        assert config[part]["num_attention_heads"] == 6
        config[part]["num_attention_heads"] = heads
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(BUNDLED / "model.safetensors")
    fused = {name: regrouped(t, 6, heads).clone() for name, t in weights.items() if "query_key_value" in name}
    assert fused
    save_file({**weights, **fused}, folder / "model.safetensors")
    return Engine.from_pretrained(folder, device="cpu", max_batch=1, max_context=256)


@pytest.mark.slow
def test_heads_that_harm_are_told_from_the_right_ones(tmp_path: Path) -> None:
    """A tower this small hardly minds half or twice its 6 heads: those are no reason to be sure."""
    scores = {str(heads): score_pairs(nano_with(heads, tmp_path / str(heads))) for heads in (1, 2, 3, 6, 12)}
    assert scores["6"].found >= 14
    assert ranking({name: scores[name] for name in ("1", "2", "6")}) == ["6", "2", "1"]
    assert stands_out({name: scores[name] for name in ("2", "6")})
    for close in ("3", "12"):
        assert not stands_out({name: scores[name] for name in (close, "6")})


@pytest.mark.slow
def test_the_bundled_model_as_one_file_is_found_to_see(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Read with the heads it has, and with those it could have."""
    write_tensors(tmp_path / "nano.pth", load_file(BUNDLED / "model.safetensors"))
    config = json.loads((BUNDLED / "config.json").read_text())
    (tmp_path / "told.json").write_text(json.dumps({"text_config": config["text_config"]}))
    given = [str(tmp_path / "nano.pth"), "--tokenizer", str(BUNDLED), "--config", str(tmp_path / "told.json")]
    given += ["--device", "cpu"]
    assert doctor.main([*given, "--vision-heads", "6", "--abstractor-heads", "6"]) == 0
    assert re.search(r"6 heads  1[456] of 16 pictures found", capsys.readouterr().out)
    assert doctor.main(given) == 0
    said = capsys.readouterr().out
    assert "8 heads " in said
    assert "16 heads " in said
