"""`python -m owl_fast.quantize`: the folder it writes, and its mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from owl_fast import Engine, quantize
from owl_fast.checkpoints import load_model, open_source, weights_sha256
from owl_fast.checkpoints.manifest import MANIFEST
from owl_fast.config import Quantization
from owl_fast.lora import Base, LoraConfig, attach, lora_slots, save_adapter
from tests.checkpoints.test_quantized import assert_same_tensors
from tests.golden_data import FirstRelease, Golden, image_files

TINY = Golden("tiny").checkpoint
OPTIONS = {"device": "cpu", "dtype": "fp32", "max_batch": 1, "max_context": 64}


def run(model: Path, out: Path, *flags: str) -> int:
    return quantize.main([str(model), "--out", str(out), "--plain", "--device", "cpu", *flags])


@pytest.mark.parametrize(
    ("flags", "held"),
    [
        (["--scheme", "int4"], Quantization("int4")),
        (["--scheme", "int8", "--quant-vision", "int8"], Quantization("int8", "int8")),
    ],
    ids=["int4", "int8 with vision"],
)
def test_the_folder_is_the_model_quantized_while_loading(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], held: Quantization
) -> None:
    out = tmp_path / "out"
    assert run(TINY, out, *flags, "--dtype", "fp32") == 0
    assert capsys.readouterr().out.startswith(f"{out}: {held}, ")
    assert_same_tensors(load_model(out), load_model(TINY, quantization=held))
    assert {"config.json", "tokenizer.model", "preprocessor_config.json", MANIFEST} <= {
        file.name for file in out.iterdir()
    }
    ours, theirs = (
        Engine.from_pretrained(path, **options).generate(
            "<image>AI: ", images=image_files()[:1], max_tokens=5
        )
        for path, options in (
            (out, OPTIONS),
            (TINY, OPTIONS | {"quant": held.scheme, "quant_vision": held.vision}),
        )
    )
    assert ours.token_ids == theirs.token_ids


def test_a_file_of_the_first_release(tmp_path: Path) -> None:
    golden, out = FirstRelease(), tmp_path / "out"
    flags = ["--vision-heads", "3", "--abstractor-heads", "2", "--scheme", "int4", "--dtype", "fp32"]
    assert run(golden.checkpoint, out, *flags) == 0
    wanted = load_model(golden.source(), dtype=torch.float32, quantization=Quantization("int4"))
    assert_same_tensors(load_model(out), wanted)


def test_adapters_of_the_original_know_it(tmp_path: Path) -> None:
    """Those trained on it as int4; not those trained on it as int8, or on something else."""
    assert run(TINY, tmp_path / "out", "--scheme", "int4") == 0
    raw = json.loads((tmp_path / "out/config.json").read_text())
    assert raw["quantization"]["base_sha256"] == weights_sha256(TINY)
    config, model = LoraConfig(), load_model(TINY)
    attach(model, config)
    for name, base in (
        ("same", Base("tiny", weights_sha256(TINY), "int4")),
        ("served in int4 only", Base("tiny", weights_sha256(TINY))),
        ("int8", Base("tiny", weights_sha256(TINY), "int8")),
        ("other", Base("tiny", "0" * 64, "int4")),
    ):
        save_adapter(model, tmp_path / name, config, base=base)
    engine = Engine.from_pretrained(tmp_path / "out", **OPTIONS)
    engine.load_adapter("same", tmp_path / "same")
    engine.load_adapter("served", tmp_path / "served in int4 only")
    with pytest.raises(ValueError, match="held as int8, this model is held as int4"):
        engine.load_adapter("int8", tmp_path / "int8")
    with pytest.raises(ValueError, match="sha256 000000000000"):
        engine.load_adapter("other", tmp_path / "other")
    engine.save_pretrained(tmp_path / "merged", adapter="same")
    assert open_source(tmp_path / "merged").config.quantization is None
    with pytest.raises(ValueError, match="trained on weights held unquantized, these are held as int4"):
        engine.save_pretrained(tmp_path / "wrong", adapter="served")
    engine.save_pretrained(tmp_path / "allowed", adapter="served", other_precision=True)


def test_merging_gives_what_the_adapter_gives(tmp_path: Path) -> None:
    config, model = LoraConfig(), load_model(TINY)
    attach(model, config)
    with torch.no_grad():
        for slot in lora_slots(model).values():
            if slot.pair is not None:
                slot.pair.lora_B.fill_(0.01)
    save_adapter(model, tmp_path / "a", config, base=Base("tiny", weights_sha256(TINY), "int4"))
    engine = Engine.from_pretrained(TINY, quant="int4", adapter=tmp_path / "a", **OPTIONS)
    engine.save_pretrained(tmp_path / "merged", adapter="default")
    merged = Engine.from_pretrained(tmp_path / "merged", **OPTIONS)
    # As the files hold it: laid out for a CPU, its inputs would be rounded as well.
    held = load_model(TINY, quantization=Quantization("int4"))
    plain = Engine(held, engine.tokenizer, engine.processor)
    plain.load_adapter("a", tmp_path / "a", check_base=False)
    wanted = plain.score("Human: Hi\nAI: ", None, "some words", adapter="a")
    assert merged.score("Human: Hi\nAI: ", None, "some words") == pytest.approx(wanted, abs=1e-5)
    assert plain.score("Human: Hi\nAI: ", None, "some words") != pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        ("no/such", "no such file or folder"),
        ("adapter", "an adapter; quantize its base"),
        ("quantized", "its weights are int4 already"),
        ("full", "exists and is not an empty folder"),
    ],
)
def test_mistakes_get_one_line(
    prepare: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = TINY, tmp_path / "out"
    if prepare == "no/such":
        model = tmp_path / "no/such"
    elif prepare == "adapter":
        model = tmp_path / "adapter"
        owl = load_model(TINY)
        attach(owl, LoraConfig())
        save_adapter(owl, model, LoraConfig(), base=str(TINY))
    elif prepare == "quantized":
        model = tmp_path / "quantized"
        run(TINY, model, "--scheme", "int4")
    else:
        out.mkdir()
        (out / "x").touch()
    capsys.readouterr()
    assert run(model, out, "--scheme", "int4") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists() or prepare == "full"


def test_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["m"], ["m", "--scheme", "int3", "--out", "x"], ["m", "--scheme", "int4"]):
        with pytest.raises(SystemExit) as caught:
            quantize.main(argv)
        assert caught.value.code == 2
    with pytest.raises(SystemExit):
        quantize.main(["--help"])
    assert "examples:" in capsys.readouterr().out
