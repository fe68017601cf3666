"""`python -m owl_fast.export.llm`: transformers loads the folder and gives our logits and ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from owl_fast.checkpoints import load_model, open_source, save_model, writer
from owl_fast.config import Quantization
from owl_fast.export import llm
from owl_fast.export.logits import Prompts
from owl_fast.models.batch import PackedBatch
from owl_fast.tokenizer import Tokenizer
from tests.export.adapters import quantized
from tests.export.exports import MODELS
from tests.golden_data import FirstRelease, Golden
from tests.typed import MARKERS

transformers = pytest.importorskip("transformers")
TINY = MODELS["tiny"].path


def run(model: Path, out: Path, *flags: str) -> Path:
    assert llm.main([str(model), "--out", str(out), "--plain", *flags]) == 0
    return out


@torch.inference_mode()
def gap(folder: Path, ours: Any, sequences: list[list[int]]) -> float:
    """The largest difference of logits, as a share of the largest logit."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    largest = 0.0
    for ids in sequences:
        wanted = ours.logits(ours(PackedBatch.from_sequences([ids])))
        off = (theirs(torch.tensor([ids])).logits[0] - wanted).abs().max() / wanted.abs().max()
        largest = max(largest, float(off))
    return largest


def texts_of(source: Any) -> list[list[int]]:
    return [ids for ids in Prompts.of(source).sequences if min(ids) >= 0]


@pytest.mark.parametrize("name", ["tiny", "micro", "owl-nano", "first-release"])
def test_logits_are_ours(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    folder = run(model.path, tmp_path / "out", "--dtype", "fp32", *model.flags)
    source = FirstRelease().source() if name == "first-release" else open_source(model.path)
    assert gap(folder, load_model(source, dtype=torch.float32), texts_of(source)) < 3e-5


def test_logits_are_the_originals(tmp_path: Path) -> None:
    golden = Golden("tiny")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(run(TINY, tmp_path / "out"))
    stored = golden.tensors("forward_text_only")
    with torch.inference_mode():
        logits = theirs(stored["input_ids"]).logits[0, -8:]
    assert (logits - stored["logits_tail"][0]).abs().max() < 1e-4


def test_quantized_weights_are_written_dense(tmp_path: Path) -> None:
    folder = run(quantized(TINY, tmp_path / "int4", "int4"), tmp_path / "out")
    source = open_source(TINY)
    held = load_model(source, quantization=Quantization("int4"))
    assert gap(folder, held, texts_of(source)) < 3e-5
    assert gap(folder, load_model(source), texts_of(source)) > 0.01


def test_the_folder_says_what_the_model_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sizes, special ids and dtype; a head of its own; shards with an index."""
    source = open_source(TINY)
    config = source.config.llama
    small = {"format": "safetensors", "shard_bytes": 1 << 17}
    monkeypatch.setattr(writer.write_weights, "__kwdefaults__", small)
    folder = run(TINY, tmp_path / "out", "--dtype", "bf16")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert type(theirs) is transformers.LlamaForCausalLM
    assert theirs.dtype == torch.bfloat16
    for name in (
        "vocab_size",
        "hidden_size",
        "num_key_value_heads",
        "rms_norm_eps",
        "max_position_embeddings",
    ):
        assert getattr(theirs.config, name) == getattr(config, name), name
    assert theirs.config.rope_parameters["rope_theta"] == config.rope_theta
    assert not theirs.config.tie_word_embeddings
    for part in (theirs.config, theirs.generation_config):
        ids = (part.bos_token_id, part.eos_token_id, part.pad_token_id)
        assert ids == (config.bos_token_id, config.eos_token_id, config.pad_token_id)
    names = {name for name, _ in theirs.named_parameters()}
    assert names == {
        name.removeprefix("language_model.")
        for name in source.targets.values()
        if name and name.startswith("language_model.")
    }
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == names
    assert len(set(index["weight_map"].values())) == len(list(folder.glob("*.safetensors"))) > 1


@pytest.fixture(scope="module", params=["tiny", "owl-nano"])
def tokenizers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, Any]:
    """Ours and transformers'. owl-nano's words hold pieces that are taken whole."""
    path = MODELS[request.param].path
    folder = run(path, tmp_path_factory.mktemp("llm") / "out")
    return open_source(path).tokenizer(), transformers.AutoTokenizer.from_pretrained(folder)


TEXTS = [
    *(
        "",
        " ",
        "Hello world",
        "  two  spaces ",
        " lead",
        "über 漢字 🙂\u200d",
        "a\tb\r\n\nc",
        "The star is red.",
    ),
    *("Human: Hi\nAI: ", "\nHuman: x", "the red star, top left", "bottomleft", "赤い星", "▁red", "<0x0A>"),
]


@pytest.mark.parametrize("text", [*TEXTS, "x</s>y", "<s>Human: <unk>", "</s>"])
def test_ids_are_ours(text: str, tokenizers: tuple[Tokenizer, Any]) -> None:
    ours, theirs = tokenizers
    assert theirs(text, add_special_tokens=False).input_ids == ours.encode(text, literal=False)
    words = theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert words == ours.encode(text, literal=True)
    assert theirs(text).input_ids == [ours.bos_id, *ours.encode(text, literal=False)]
    assert theirs.decode(words, skip_special_tokens=True) == ours.decode(words)


@settings(max_examples=150, deadline=None)
@given(text=st.text() | st.lists(st.sampled_from([*MARKERS, *TEXTS, " ", "\n"])).map("".join))
def test_ids_of_any_text_are_ours(text: str, tokenizers: tuple[Tokenizer, Any]) -> None:
    ours, theirs = tokenizers
    assert theirs(text, add_special_tokens=False).input_ids == ours.encode(text, literal=False)


def test_another_kind_of_tokenizer_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sentencepiece import sentencepiece_model_pb2

    model = tmp_path / "model"
    save_model(load_model(TINY), model, side_files=TINY)
    (model / "owl_manifest.json").unlink()
    words = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    words.ParseFromString((TINY / "tokenizer.model").read_bytes())
    words.normalizer_spec.add_dummy_prefix = False
    (model / "tokenizer.model").write_bytes(words.SerializeToString())
    assert llm.main([str(model), "--out", str(tmp_path / "out"), "--plain"]) == 1
    assert "not of LLaMA's kind (it puts no space in front)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
