"""`python -m owl_fast.export.merged`: the model with the adapter inside answers as with it beside."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from owl_fast.checkpoints import load_model, open_source, weights_sha256
from owl_fast.config import Quantization
from owl_fast.engine.opening import BUNDLED
from owl_fast.export import merged
from owl_fast.export.logits import Gap, Prompts
from owl_fast.lora import Adapter, Base, LoraConfig, attach, save_adapter
from tests.export.adapters import EXTRA, adapted, adapter_of, quantized
from tests.golden_data import FirstRelease, Golden

GOLDEN = Golden("tiny")
MICRO = Golden("micro").checkpoint
SHA256 = weights_sha256(MICRO)
INT4 = Quantization("int4")
LARGEST = re.compile(r"largest difference (\S+), mean (\S+), .* at (\S+)% of (\d+) positions")


def run(base: Path, adapter: Path, out: Path, *flags: str) -> int:
    return merged.main([str(base), str(adapter), "--out", str(out), "--plain", *flags])


def gaps(said: str) -> list[tuple[float, float, float]]:
    return [(float(a), float(b), float(c)) for a, b, c, _ in LARGEST.findall(said)]


def test_logits_are_the_originals(tmp_path: Path) -> None:
    """Those of peft in the original, with its picture."""
    assert run(GOLDEN.checkpoint, GOLDEN.adapter, tmp_path / "out") == 0
    case = "forward_lora_one_image"
    stored = GOLDEN.tensors(case)
    prompts = Prompts(stored["input_ids"].tolist(), GOLDEN.pixels(GOLDEN.meta(case)["image_index"]))
    logits = prompts.logits(load_model(tmp_path / "out"))
    assert (logits[-8:] - stored["logits_tail"][0]).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("given", "held"),
    [("original", None), ("original", INT4), ("original", Quantization("int8", "int8")), ("int4", INT4)],
    ids=str,
)
def test_it_is_merged_into_what_it_was_trained_on(
    given: str, held: Quantization | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = adapter_of(MICRO, tmp_path / "adapter", Base("micro", SHA256, held and str(held)))
    base = MICRO if given == "original" else quantized(MICRO, tmp_path / "int4", "int4")
    assert run(base, adapter, tmp_path / "out") == 0
    ((largest, _, same),) = gaps(capsys.readouterr().out)
    assert largest < 1e-4
    assert same == 100
    source = open_source(tmp_path / "out")
    assert source.config.quantization is None
    prompts = Prompts.of(source)
    written, wanted = prompts.logits(load_model(source)), prompts.logits(adapted(MICRO, held))
    assert (written - wanted).abs().max() < 1e-4
    assert (written - prompts.logits(load_model(MICRO, quantization=held))).abs().max() > 0.01
    assert torch.equal(load_model(source).get_parameter(EXTRA), adapted(MICRO).get_parameter(EXTRA))


def test_the_folder_has_all_that_the_base_has(tmp_path: Path) -> None:
    adapter = adapter_of(MICRO, tmp_path / "adapter", Base("micro", SHA256))
    assert run(MICRO, adapter, tmp_path / "out", "--dtype", "bf16") == 0
    files = {file.name for file in (tmp_path / "out").iterdir()}
    assert files >= {"config.json", "tokenizer.model", "preprocessor_config.json", "owl_manifest.json"}
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == "bfloat16"
    assert load_model(tmp_path / "out").dtype == torch.bfloat16


def test_a_file_of_the_first_release(tmp_path: Path) -> None:
    golden = FirstRelease()
    adapter = tmp_path / "adapter"
    model = load_model(golden.source(), dtype=torch.float32)
    attach(model, LoraConfig())
    save_adapter(model, adapter, LoraConfig(), base=Base("v0", weights_sha256(golden.checkpoint)))
    heads = ["--vision-heads", "3", "--abstractor-heads", "2"]
    assert run(golden.checkpoint, adapter, tmp_path / "out", *heads) == 0
    assert open_source(tmp_path / "out").config == golden.source().config


@pytest.mark.parametrize(
    ("base", "trained"), [("original", "int4"), ("int4", None), ("int4", "int8")], ids=str
)
def test_another_precision_takes_a_flag_and_is_told(
    base: str, trained: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = adapter_of(MICRO, tmp_path / "adapter", Base(str(MICRO), SHA256, trained))
    given = MICRO if base == "original" else quantized(MICRO, tmp_path / "int4", "int4")
    if base != "original":
        assert run(given, adapter, tmp_path / "out") == 1
        said = capsys.readouterr().err
        assert "merged they answer otherwise than in training" in said
        assert f"Give {str(MICRO)!r:.100} as BASE, or allow it with --other-precision" in said
    assert run(given, adapter, tmp_path / "out", "--other-precision") == 0
    beside, in_training = gaps(capsys.readouterr().out)
    assert beside[0] < 1e-4
    prompts = Prompts.of(open_source(MICRO))
    held = trained and Quantization(trained)
    off = prompts.logits(load_model(tmp_path / "out")) - prompts.logits(adapted(MICRO, held or None))
    assert in_training[0] == pytest.approx(float(off.abs().max()), rel=0.06)  # of which two digits are shown
    assert in_training[1] == pytest.approx(float(off.abs().mean()), rel=0.06)
    assert in_training[0] > 100 * beside[0]


def test_a_gap_that_cannot_be_known_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = adapter_of(MICRO, tmp_path / "adapter", Base("far/away", SHA256, None))
    base = quantized(MICRO, tmp_path / "int4", "int4")
    assert run(base, adapter, tmp_path / "out", "--other-precision") == 0
    assert "is not known: far/away, unquantized, is not on this machine" in capsys.readouterr().out


def test_another_base_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = adapter_of(MICRO, tmp_path / "adapter", Base("other", "0123456789abcdef" * 4))
    assert run(MICRO, adapter, tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for part in (
        "'other'",
        "0123456789ab...",
        f"{SHA256:.12}...",
        "give the model it was trained on as BASE",
    ):
        assert part in said
    assert run(BUNDLED, BUNDLED / "adapter", tmp_path / "out") == 1
    assert not (tmp_path / "out").exists()


def test_an_adapter_without_a_hash_is_merged_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(MICRO, adapter_of(MICRO, tmp_path / "adapter", None), tmp_path / "out") == 0
    assert "does not say what it was trained on" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_what_is_not_the_sum_is_not_kept(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights without the update; and all is well with it."""
    adapter = adapter_of(MICRO, tmp_path / "adapter", Base("micro", SHA256))
    assert run(MICRO, adapter, tmp_path / "out", "--dtype", dtype) == 0
    monkeypatch.setattr(Adapter, "merged", lambda self, name, tensor: self.extra.get(name, tensor))
    assert run(MICRO, adapter, tmp_path / "other", "--dtype", dtype) == 1
    assert "other logits than the adapter on its base" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "out"}


def test_a_gap_sees_what_is_no_number() -> None:
    logits = torch.tensor([[1.0, 3.0], [4.0, 2.0]])
    assert Gap.between(logits, logits) == Gap(0.0, 0.0, 1.0, 4.0, 2)
    other = torch.tensor([[3.5, 3.0], [4.0, 2.0]])
    assert Gap.between(other, logits) == Gap(2.5, 0.625, 0.5, 4.0, 2)
    assert not Gap.between(logits * float("nan"), logits).within(1.0)


@pytest.mark.parametrize("text", ["int4", "int8", "int4-g64", "vision int8", "int4-g16, vision int8"])
def test_quantizations_are_read_as_they_are_said(text: str) -> None:
    assert str(Quantization.from_text(text)) == text


@pytest.mark.parametrize("text", ["", "int3", "int4-g", "int4-g7", "int8-g64", "vision", "int4 vision int8"])
def test_texts_that_are_no_quantization(text: str) -> None:
    with pytest.raises(ValueError, match="quantization"):
        Quantization.from_text(text)
