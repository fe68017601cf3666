"""`python -m owl_fast.export.gguf`: the file as gguf reads it, and as llama.cpp runs it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from owl_fast import Engine
from owl_fast.checkpoints import load_model, open_source, weights_sha256
from owl_fast.checkpoints.names import views
from owl_fast.export import gguf as command
from owl_fast.export.gguf_file import OUTER, file_name
from owl_fast.export.vocabulary import filled, pieces
from owl_fast.models.batch import PackedBatch
from tests.export.exports import MODELS

gguf = pytest.importorskip("gguf")
# Of each type: what rounding may be, as a share of the largest weight of a row.
ROUNDING = {"f32": 0.0, "f16": 2**-11, "bf16": 2**-8, "q8_0": 1 / 220, "q4_0": 1 / 7.9}
PROMPTS = [
    "Human: What color is the star?\nAI: ",
    "The following is a conversation between a curious human and AI assistant. The assistant gives helpful, "
    "detailed, and polite answers to the user's questions.\nHuman: Hello\nAI: ",
    "Human: Compute 3 + 4.\nAI: ",
    "über 漢字 🙂",
    "  two  spaces \n\n\tAI:",
]


def run(name: str, out: Path, scheme: str) -> Path:
    model = MODELS[name]
    assert command.main([str(model.path), "--out", str(out), "--type", scheme, "--plain", *model.flags]) == 0
    return out


def read(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


def field(path: Path, key: str) -> Any:
    return gguf.GGUFReader(path).fields[key].contents()


@pytest.mark.parametrize("scheme", ROUNDING)
@pytest.mark.parametrize("name", ["tiny", "owl-nano"])
def test_weights_are_ours(name: str, scheme: str, tmp_path: Path) -> None:
    stored = read(run(name, tmp_path / "model.gguf", scheme))
    model = load_model(MODELS[name].path, dtype=torch.float32)
    config = model.config.llama
    held = {file_name(name): view for name, view in views(model.language_model).items()}
    assert stored.keys() == held.keys()
    for place, weight in held.items():
        kind = stored[place].tensor_type.name.lower()
        outer = scheme == "q4_0" and place in OUTER
        assert kind == ("f32" if weight.ndim == 1 else "q8_0" if outer else scheme)
        found = torch.from_numpy(gguf.dequantize(stored[place].data, stored[place].tensor_type).copy())
        if "attn_q" in place or "attn_k" in place:  # back from pairs of neighbours to halves
            pairs = found.view(config.num_attention_heads, config.head_dim // 2, 2, -1)
            found = pairs.transpose(1, 2).reshape(weight.shape)
        off = (found - weight).abs().amax(-1) / weight.abs().amax(-1)
        assert off.max() <= ROUNDING[kind], place


def test_the_head_of_the_file(tmp_path: Path) -> None:
    path, source = run("owl-nano", tmp_path / "model.gguf", "q8_0"), open_source(MODELS["owl-nano"].path)
    config = source.config.llama
    for key, value in {
        "general.architecture": "llama",
        "general.name": "owl-nano, language model",
        "general.file_type": int(gguf.LlamaFileType.MOSTLY_Q8_0),
        "owl_fast.weights_sha256": weights_sha256(source.weights),
        "llama.context_length": config.max_position_embeddings,
        "llama.block_count": config.num_hidden_layers,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(config.rms_norm_eps),
        "llama.rope.freq_base": config.rope_theta,
        "llama.vocab_size": config.vocab_size,
        "tokenizer.ggml.bos_token_id": config.bos_token_id,
        "tokenizer.ggml.eos_token_id": config.eos_token_id,
        "tokenizer.ggml.padding_token_id": config.pad_token_id,
        "tokenizer.ggml.add_bos_token": True,
    }.items():
        assert field(path, key) == value, key
    known = pieces(source.tokenizer().model_bytes)
    assert field(path, "tokenizer.ggml.token_type") == [piece.kind for piece in known]


def test_rows_of_the_head_without_a_word_get_one() -> None:
    model = open_source(MODELS["micro"].path).tokenizer().model_bytes
    known = pieces(model)
    more = pieces(filled(model, len(known) + 3))
    assert more[: len(known)] == known
    assert len({piece.text for piece in more}) == len(known) + 3


def test_rows_that_fill_no_blocks_are_f16(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = read(run("micro", tmp_path / "model.gguf", "q4_0"))
    wide = [tensor for tensor in stored.values() if len(tensor.shape) == 2]
    kinds = {tensor.tensor_type.name for tensor in wide if tensor.shape[0] % 32}
    assert kinds == {"F16"}
    assert {t.tensor_type.name for t in wide if t.shape[0] % 32 == 0} == {"Q4_0"}
    assert "rows of 14 weights do not fill blocks: these are f16" in capsys.readouterr().out


def test_numbers_beyond_f16_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from owl_fast.checkpoints import writer

    dense = writer._Held.read_dense
    monkeypatch.setattr(writer._Held, "read_dense", lambda self, name: dense(self, name) * 1e9)
    for scheme, code in (("f16", 1), ("q8_0", 1), ("bf16", 0)):
        out = tmp_path / f"{scheme}.gguf"
        argv = [str(MODELS["tiny"].path), "--out", str(out), "--type", scheme, "--plain"]
        assert command.main(argv) == code
        assert ("holds numbers beyond" in capsys.readouterr().err) == bool(code)
        assert out.exists() == (code == 0)


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(MODELS["tiny"].path)
    assert command.main([model, "--out", str(tmp_path / "folder")]) == 1
    assert "wanted a file whose name ends in .gguf" in capsys.readouterr().err
    for argv in ([model], [model, "--out", "x.gguf", "--type", "q2_k"]):
        with pytest.raises(SystemExit) as caught:
            command.main(argv)
        assert caught.value.code == 2


# --- llama.cpp --------------------------------------------------------------------------------------------


class LlamaCpp:
    """The file in llama.cpp, its cache in float32."""

    def __init__(self, path: Path) -> None:
        import llama_cpp

        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p())
        options: dict[str, Any] = {"n_ctx": 256, "logits_all": True, "verbose": False, "n_threads": 2}
        self._model = llama_cpp.Llama(str(path), type_k=0, type_v=0, **options)

    def logits(self, ids: list[int]) -> Tensor:
        self._model.reset()
        self._model.eval(ids)
        return torch.from_numpy(np.array(self._model.scores[: len(ids)]))

    def greedy(self, ids: list[int], count: int) -> list[int]:
        self._model.reset()
        found: list[int] = []
        for token in self._model.generate(ids, top_k=1, temp=0.0, repeat_penalty=1.0):
            found.append(int(token))
            if len(found) == count or token == 2:
                return found
        raise AssertionError

    def ids(self, text: str) -> list[int]:
        return self._model.tokenize(text.encode(), add_bos=False, special=False)

    def text(self, ids: list[int]) -> str:
        return self._model.detokenize(ids).decode()

    def close(self) -> None:
        self._model.close()


@pytest.fixture
def llama_cpp(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LlamaCpp]:
    """request.param: model and type."""
    pytest.importorskip("llama_cpp")
    name, scheme = request.param
    opened = LlamaCpp(run(name, tmp_path / "model.gguf", scheme))
    yield opened
    opened.close()


def cases(*schemes: str) -> Any:
    names = ("owl-nano", "tiny", "micro")
    return pytest.mark.parametrize(
        ("llama_cpp", "name", "scheme"),
        [((name, scheme), name, scheme) for name in names for scheme in schemes],
        indirect=["llama_cpp"],
        ids=[f"{name}-{scheme}" for name in names for scheme in schemes],
    )


# The mean difference of logits, as a share of the largest one. llama.cpp rounds the inputs of narrow weights.
OFF = {"f32": 2e-6, "f16": 1e-3, "bf16": 5e-3, "q8_0": 2e-2}


@pytest.mark.slow
@cases(*OFF)
@torch.inference_mode()
def test_llama_cpp_gives_our_logits(llama_cpp: LlamaCpp, name: str, scheme: str) -> None:
    source = open_source(MODELS[name].path)
    tokenizer, model = source.tokenizer(), load_model(source, dtype=torch.float32)
    same, count = 0, 0
    for prompt in PROMPTS:
        ids = [tokenizer.bos_id, *tokenizer.encode(prompt, literal=True)]
        theirs, ours = llama_cpp.logits(ids), model.logits(model(PackedBatch.from_sequences([ids])))
        assert (theirs - ours).abs().mean() <= OFF[scheme] * ours.abs().max(), prompt
        same, count = same + int((theirs.argmax(-1) == ours.argmax(-1)).sum()), count + len(ids)
    assert same / count >= {"f32": 1.0, "f16": 0.98, "bf16": 0.93, "q8_0": 0.9}[scheme]


@pytest.mark.slow
@cases("f32")
def test_llama_cpp_writes_our_answers(llama_cpp: LlamaCpp, name: str, scheme: str) -> None:
    engine = Engine.from_pretrained(MODELS[name].path, device="cpu", dtype="fp32", max_context=256)
    for prompt in PROMPTS:
        ids = [engine.tokenizer.bos_id, *engine.tokenizer.encode(prompt, literal=True)]
        ours = engine.generate(prompt, max_tokens=24, temperature=0).token_ids
        assert llama_cpp.greedy(ids, 24)[: len(ours)] == ours, prompt


@pytest.mark.slow
@cases("f32")
def test_llama_cpp_cuts_text_as_we_do(llama_cpp: LlamaCpp, name: str, scheme: str) -> None:
    """owl-nano takes some words whole: there the text has to begin with a space."""
    tokenizer = open_source(MODELS[name].path).tokenizer()
    for prompt in [*PROMPTS, "The red star is at the top left.", "\nHuman: x", "</s>", "a\r\n"]:
        ids = tokenizer.encode(prompt, literal=True)
        assert llama_cpp.ids(" " * (name == "owl-nano") + prompt) == ids
        if prompt != PROMPTS[1]:  # of which owl-nano's has a word too long for llama-cpp-python
            assert llama_cpp.text(ids) == " " + tokenizer.decode(ids)
