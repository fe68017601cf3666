"""Named adapters: each request gets its own, and the base stays what it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from owl_fast import Engine
from owl_fast.checkpoints import read_tensors, weights_sha256, write_tensors
from owl_fast.engine import carried
from owl_fast.engine.outputs import Output
from owl_fast.errors import CheckpointError, OwlError, ParameterError
from owl_fast.lora import BASE_FILE, EXTRA_FILE, Base
from tests.golden_data import Golden, image_files
from tests.tolerances import ACTIVATION, SAME_RUN

GOLDEN = Golden("micro")
QUESTION = {"prompt": "Human: <image>\nHuman: what?\nAI: ", "images": image_files()[:1]}
EXTRA = (
    "query_tokens",
    "abstractor.vit_eos",
    "abstractor.encoder.layers.0.crossattention.attention.value.weight",
)


def write_adapter(folder: Path, base: Base | None = None) -> Path:
    """The golden adapter with other updates, and abstractor tensors of its own."""
    folder.mkdir()
    tensors = torch.load(GOLDEN.adapter / "adapter_model.bin", weights_only=True)
    save_file({name: -2 * tensor for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    shutil.copyfile(GOLDEN.adapter / "adapter_config.json", folder / "adapter_config.json")
    shards = (GOLDEN.checkpoint.parent / "checkpoint_safetensors").glob("*.safetensors")
    model = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    save_file({name: model[name] * 0.5 + 0.1 for name in EXTRA}, folder / EXTRA_FILE)
    if base is not None:
        (folder / BASE_FILE).write_text(json.dumps(vars(base)))
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("adapters") / "other")


def load(**options: Any) -> Engine:
    return Engine.from_pretrained(GOLDEN.checkpoint, device="cpu", dtype="fp32", max_batch=3, **options)


@pytest.fixture
def engine(other: Path) -> Engine:
    engine = load()
    engine.load_adapter("golden", GOLDEN.adapter)
    engine.load_adapter("other", other)
    return engine


def ask(engine: Engine, **options: Any) -> Output:
    return engine.generate(QUESTION["prompt"], images=QUESTION["images"], max_tokens=8, **options)  # type: ignore[arg-type]


def bits(out: Output) -> tuple[list[int], list[float]]:
    return out.token_ids, out.logprobs


def test_an_adapter_by_name_is_the_adapter_loaded_with_the_model(engine: Engine, other: Path) -> None:
    assert engine.adapters == ("golden", "other")
    for name, folder in (("golden", GOLDEN.adapter), ("other", other)):
        assert bits(ask(engine, adapter=name)) == bits(ask(load(adapter=folder)))


def test_the_base_is_bit_for_bit_the_same_afterwards(engine: Engine) -> None:
    rows, weights = engine.encode_images(QUESTION["images"]), dict(engine.model.state_dict())  # type: ignore[arg-type]
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    before = ask(engine)
    assert bits(ask(engine, adapter="other")) != bits(before)
    assert bits(ask(engine, adapter="golden")) != bits(before)
    assert bits(ask(engine)) == bits(before)
    assert torch.equal(engine.encode_images(QUESTION["images"]), rows)  # type: ignore[arg-type]
    after = engine.model.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())


def test_a_mixed_list_equals_one_at_a_time(engine: Engine) -> None:
    names = [None, "golden", "golden", "other", None, "golden", "other", "base"]
    alone = [ask(engine, adapter=name) for name in names]
    together = engine.generate([{**QUESTION, "adapter": name} for name in names], max_tokens=8)
    assert isinstance(together, list)
    for one, out in zip(alone, together, strict=True):
        assert out.token_ids == one.token_ids
        assert out.logprobs == pytest.approx(one.logprobs, abs=SAME_RUN)
    default = engine.generate([QUESTION, {**QUESTION, "adapter": "other"}], max_tokens=8, adapter="golden")
    assert [out.token_ids for out in default] == [alone[1].token_ids, alone[3].token_ids]  # type: ignore[union-attr]


def test_every_door_takes_an_adapter(engine: Engine) -> None:
    prompt, images = QUESTION["prompt"], QUESTION["images"]
    out = ask(engine, adapter="other")
    stream = engine.stream(prompt, images=images, max_tokens=8, adapter="other")  # type: ignore[arg-type]
    assert [token for event in stream for token in event.token_ids] == out.token_ids
    changed = engine.encode_images(images, adapter="other")  # type: ignore[arg-type]
    assert not torch.equal(changed, engine.encode_images(images))  # type: ignore[arg-type]
    ours = engine.score(prompt, images, "a cat", adapter="other")  # type: ignore[arg-type]
    assert ours != engine.score(prompt, images, "a cat")  # type: ignore[arg-type]
    chat = engine.chat(adapter="other", max_tokens=8)
    plain = engine.chat(max_tokens=8)
    assert chat("what?", images).logprobs != plain("what?", images).logprobs  # type: ignore[arg-type]


def test_encoding_pictures_in_the_middle_of_an_answer_does_not_touch_it(engine: Engine) -> None:
    whole = ask(engine, adapter="other")
    stream = engine.stream(QUESTION["prompt"], images=QUESTION["images"], max_tokens=8, adapter="other")  # type: ignore[arg-type]
    events = [next(stream) for _ in range(3)]
    engine.encode_images(QUESTION["images"])  # type: ignore[arg-type]
    assert [event.logprob for event in (*events, *stream)] == whole.logprobs


def test_the_default_adapter_is_everyones_who_names_none(other: Path) -> None:
    engine, plain = load(adapter=other), load()
    assert engine.adapters == ("default",)
    assert bits(ask(engine, adapter="base")) == bits(ask(plain))
    assert bits(ask(engine)) == bits(ask(engine, adapter="default")) != bits(ask(plain))
    engine.unload_adapter("default")
    assert bits(ask(engine)) == bits(ask(plain))


def test_unloading_leaves_running_answers_alone_and_frees_the_memory(engine: Engine, other: Path) -> None:
    before = load().memory()
    whole = ask(engine, adapter="other")
    stream = engine.stream(QUESTION["prompt"], images=QUESTION["images"], max_tokens=8, adapter="other")  # type: ignore[arg-type]
    events = [next(stream) for _ in range(3)]
    assert engine.memory().adapters > 0
    engine.unload_adapter("other")
    assert [event.logprob for event in (*events, *stream)] == whole.logprobs
    assert engine.adapters == ("golden",)
    engine.unload_adapter("golden")
    assert engine.memory() == before
    engine.load_adapter("other", other)
    assert bits(ask(engine, adapter="other")) == bits(whole)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda e: e.load_adapter("golden", GOLDEN.adapter), "'golden' is loaded already"),
        (lambda e: e.load_adapter("base", GOLDEN.adapter), "name 'base'"),
        (lambda e: e.load_adapter("", GOLDEN.adapter), "name ''"),
        (lambda e: e.load_adapter(5, GOLDEN.adapter), "name 5"),
        (lambda e: e.unload_adapter("none"), "no adapter 'none' is loaded; loaded: 'golden', 'other'"),
        (lambda e: e.unload_adapter("base"), "is the model itself"),
        (lambda e: ask(e, adapter="none"), "no adapter 'none'"),
        (lambda e: ask(e, adapter=[]), "no adapter"),
        (lambda e: e.generate([{**QUESTION, "adapter": "none"}]), "no adapter 'none'"),
        (lambda e: e.encode_images([], adapter="none"), "no adapter 'none'"),
    ],
)
def test_names_that_do_not_fit(engine: Engine, call: Callable[[Engine], object], said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        call(engine)
    assert engine.adapters == ("golden", "other")


def test_a_folder_that_does_not_fit_loads_nothing(engine: Engine, tmp_path: Path) -> None:
    wrong = write_adapter(tmp_path / "wrong")
    save_file({"abstractor.vit_eos": torch.zeros(1, 1, 5)}, wrong / EXTRA_FILE)
    for folder, said in ((wrong, "vit_eos has shape"), (tmp_path / "none", "none")):
        with pytest.raises(CheckpointError, match=said):
            engine.load_adapter("new", folder)
    assert engine.adapters == ("golden", "other")


# --- the model an adapter was trained on ---


def test_the_fingerprint_does_not_depend_on_files(tmp_path: Path) -> None:
    ours = weights_sha256(GOLDEN.checkpoint)
    assert ours == weights_sha256(GOLDEN.checkpoint.parent / "checkpoint_safetensors")
    assert ours != weights_sha256(Golden("tiny").checkpoint)
    load().save_pretrained(tmp_path / "again")
    assert weights_sha256(tmp_path / "again") == ours
    file = tmp_path / "again/model.safetensors"
    assert weights_sha256(file) == ours
    tensors = read_tensors(file)
    tensors["query_tokens"].view(-1).view(torch.int32)[3] ^= 1
    write_tensors(tmp_path / "other.safetensors", tensors)
    assert weights_sha256(tmp_path / "other.safetensors") != ours


@pytest.mark.parametrize(
    ("base", "said"),
    [
        (Base("stage 1", "0" * 64), "'stage 1' with weights of sha256 000000000000"),
        (
            Base("stage 1", weights_sha256(GOLDEN.checkpoint), "int4"),
            "held as int4, this model is not quantized",
        ),
    ],
)
def test_an_adapter_of_another_base_is_refused(tmp_path: Path, base: Base, said: str) -> None:
    folder, engine = write_adapter(tmp_path / "adapter", base), load()
    with pytest.raises(CheckpointError, match=said) as caught:
        engine.load_adapter("a", folder)
    assert str(folder) in str(caught.value)
    held = base.quantization is not None
    advice = "load it as it was then (quant=" if held else "load the adapter on that model"
    assert advice in str(caught.value)
    engine.load_adapter("a", folder, check_base=False)
    assert ask(engine, adapter="a").token_ids


@pytest.mark.parametrize("quant", [None, "auto"])
def test_a_base_is_held_as_its_adapter_knows_it(quant: str | None, tmp_path: Path) -> None:
    """A chat with what was trained on int4 weights needs no flag; who names another precision is told."""
    base = Base(str(GOLDEN.checkpoint), weights_sha256(GOLDEN.checkpoint), "int4")
    folder = write_adapter(tmp_path / "adapter", base)

    def opened(quant: str | None) -> Engine:
        return Engine.from_pretrained(
            GOLDEN.checkpoint, adapter=folder, quant=quant, device="cpu", dtype="fp32", max_batch=1
        )

    engine = opened(quant)
    assert str(engine.config.quantization) == "int4"
    assert ask(engine).token_ids
    with pytest.raises(CheckpointError, match="this model is not quantized; load it as it was then"):
        opened("none")


def test_an_adapter_of_this_base_is_taken(tmp_path: Path) -> None:
    base = Base("micro", weights_sha256(GOLDEN.checkpoint))
    engine = load()
    engine.load_adapter("a", write_adapter(tmp_path / "adapter", base))
    homeless = Engine(engine.model, engine.tokenizer, engine._reader.processor, max_batch=1)
    with pytest.raises(CheckpointError, match="not known"):
        homeless.load_adapter("a", tmp_path / "adapter")
    (tmp_path / "adapter" / BASE_FILE).write_text('{"name": 5}')
    with pytest.raises(CheckpointError, match=r"base\.json"):
        engine.load_adapter("b", tmp_path / "adapter")


# --- saving ---


def test_a_saved_model_answers_as_before(tmp_path: Path, engine: Engine) -> None:
    ask(engine, adapter="other")
    engine.save_pretrained(tmp_path / "base", format="bin")
    again = Engine.from_pretrained(tmp_path / "base", device="cpu", dtype="fp32", max_batch=3)
    assert bits(ask(again)) == bits(ask(engine))
    names = {path.name for path in (tmp_path / "base").iterdir()}
    assert {"config.json", "tokenizer.model", "tokenizer_config.json", "pytorch_model.bin"} <= names


def test_a_saved_model_holds_the_adapter_asked_for(tmp_path: Path, engine: Engine) -> None:
    engine.save_pretrained(tmp_path / "merged", adapter="other")
    merged, wanted = load_engine(tmp_path / "merged"), ask(engine, adapter="other")
    assert ask(merged).token_ids == wanted.token_ids
    assert ask(merged).logprobs == pytest.approx(wanted.logprobs, abs=ACTIVATION)
    assert merged.adapters == ()
    with pytest.raises(OwlError, match="not an empty folder"):
        engine.save_pretrained(tmp_path / "merged")


def load_engine(folder: Path) -> Engine:
    return Engine.from_pretrained(folder, device="cpu", dtype="fp32", max_batch=1)


def test_an_engine_without_a_folder_is_saved_whole(tmp_path: Path, engine: Engine) -> None:
    made = Engine(engine.model, engine.tokenizer, engine._reader.processor, max_batch=1)
    made.save_pretrained(tmp_path / "out")
    again = load_engine(tmp_path / "out")
    assert again._reader.processor == made._reader.processor
    assert (tmp_path / "out/tokenizer.model").read_bytes() == (
        GOLDEN.checkpoint / "tokenizer.model"
    ).read_bytes()
    assert bits(ask(again)) == bits(ask(made))


def test_an_adapter_folder_as_the_model_is_its_default_adapter(tmp_path: Path, other: Path) -> None:
    shutil.copytree(GOLDEN.adapter, tmp_path / "a")
    raw = json.loads((tmp_path / "a/adapter_config.json").read_text())
    raw["base_model_name_or_path"] = str(GOLDEN.checkpoint)
    (tmp_path / "a/adapter_config.json").write_text(json.dumps(raw))
    engine = load_engine(tmp_path / "a")
    assert engine.adapters == ("default",)
    assert bits(ask(engine)) == bits(ask(load(adapter=GOLDEN.adapter)))
    assert bits(ask(engine, adapter="base")) == bits(ask(load()))
    with pytest.raises(ParameterError, match="an adapter itself"):
        Engine.from_pretrained(tmp_path / "a", adapter=other)


def test_an_adapter_that_finds_no_room_leaves_nothing(other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, stacked = load(), []
    before, whole = engine.memory().adapters, carried.ops.stack_adapters

    def fills_up(*given: Any) -> Any:
        stacked.append(given)
        if len(stacked) == 2:
            raise MemoryError
        return whole(*given)

    monkeypatch.setattr(carried.ops, "stack_adapters", fills_up)
    with pytest.raises(MemoryError):
        engine.load_adapter("other", other)
    assert engine.adapters == ()
    assert engine.memory().adapters == before == 0
    engine.load_adapter("other", other)  # now there is
    assert engine.generate(**QUESTION, adapter="other", max_tokens=2).finish_reason == "length"
