"""Requests for different adapters in one batch: each gets, bit by bit, what it gets alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from owl_fast import Engine
from owl_fast.checkpoints.names import views
from owl_fast.engine.opening import BUNDLED
from owl_fast.errors import UnsupportedError
from owl_fast.lora import LoraConfig, attach, lora_slots, save_adapter
from tests.engine.test_graphs import settled
from tests.golden_data import Golden, image_files
from tests.tolerances import ACTIVATION

GOLDEN = Golden("micro")
PICTURES = image_files()[:2]
SCENE = Path(__file__).resolve().parents[2] / "examples/scene.png"
OWN_NORM = "language_model.model.norm.weight"
Said = list[tuple[object, ...]]

pytestmark = pytest.mark.usefixtures("cpu_library")  # without it no batch promises the bits of another


class Kind(NamedTuple):
    """An adapter: the rank and the targets of its updates, and what else it brings."""

    rank: int
    targets: str
    extra: tuple[str, ...] = ()


KINDS = {
    "narrow": Kind(3, r".*language_model.*\.(q_proj|v_proj)"),
    "wide": Kind(11, r".*language_model.*"),
    "eyes": Kind(
        5,
        r".*(gate_proj|down_proj|crossattention\.attention\.key|visual_fc)",
        (
            "query_tokens",
            "abstractor.vit_eos",
            "abstractor.encoder.layers.0.crossattention.attention.value.weight",
        ),
    ),
    "alone": Kind(4, r".*language_model.*\.o_proj", (OWN_NORM, "abstractor.vit_eos")),
}
MIXED = ("base", "narrow", "wide", "eyes")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = tmp_path_factory.mktemp("adapters")
    for name, kind in KINDS.items():
        model, generator = GOLDEN.fresh_model(), torch.Generator().manual_seed(kind.rank)
        config = LoraConfig.from_dict({"r": kind.rank, "lora_alpha": 16, "target_modules": kind.targets})
        attach(model, config)
        pairs = [slot.pair for slot in lora_slots(model).values() if slot.pair is not None]
        with torch.no_grad():
            for tensor in (half for pair in pairs for half in (pair.lora_A, pair.lora_B)):
                tensor.normal_(std=0.2, generator=generator)
            for tensor in map(views(model).__getitem__, kind.extra):
                tensor.mul_(0.5).add_(0.3)
        save_adapter(model, made / name, config, base="micro", extra=kind.extra)
    return {name: made / name for name in KINDS}


def load(folders: dict[str, Path], *names: str, **options: Any) -> Engine:
    engine = Engine.from_pretrained(GOLDEN.checkpoint, device="cpu", max_batch=8, **options)
    for name in names:
        if name != "base":
            engine.load_adapter(name, folders[name])
    return engine


def questions(name: str) -> list[dict[str, Any]]:
    """To one adapter: a word, a picture, two pictures, and words for more than a block."""
    texts = ("a", "Human: <image>\nAI: ", "<image> and <image>", "a b c d e f g h i j k l m n o p q r")
    return [{"prompt": text, "images": PICTURES[: text.count("<image>")], "adapter": name} for text in texts]


def ask(engine: Engine, items: list[dict[str, Any]], **options: Any) -> Said:
    options = {"max_tokens": 5, "temperature": 0.9, "seed": 5, "logprobs": 2, "ignore_eos": True} | options
    return [(out.token_ids, out.logprobs, out.top_logprobs) for out in engine.generate(items, **options)]  # type: ignore[union-attr]


def watched(engine: Engine) -> list[list[str]]:
    """The adapters of every step from now on, sorted."""
    run, seen = engine._runner.run, []
    names = {adapter: name for name, adapter in engine._adapters._loaded.items()}

    def watching(plan: Any) -> Any:
        seen.append(sorted({names.get(span.request.adapter, "base") for span in plan.spans}))
        return run(plan)

    engine._runner.run = watching  # type: ignore[method-assign]
    return seen


def mixture(*names: str) -> list[dict[str, Any]]:
    return [item for items in zip(*map(questions, names), strict=True) for item in items]


def alone(folders: dict[str, Path], name: str, **options: Any) -> Said:
    """Each question in an engine of its own adapter, by itself."""
    engine = load(folders, name, **options)
    return [said for item in questions(name) for said in ask(engine, [item])]


def mixed(said: dict[str, Said], *names: str) -> Said:
    return [one for group in zip(*(said[name] for name in names), strict=True) for one in group]


@pytest.mark.parametrize("quant", ["none", "int4"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_mixed_batch_says_what_each_says_alone(folders: dict[str, Path], dtype: str, quant: str) -> None:
    options = {"dtype": dtype, "quant": quant}
    wanted = {name: alone(folders, name, **options) for name in MIXED}
    assert all(wanted[name] != wanted["base"] for name in MIXED[1:])
    engine = load(folders, *MIXED, **options)
    seen = watched(engine)
    assert ask(engine, mixture(*MIXED)) == mixed(wanted, *MIXED)
    assert sorted(MIXED) in seen
    assert ask(engine, mixture(*reversed(MIXED))) == mixed(wanted, *reversed(MIXED)), "as cached"


@pytest.fixture(scope="module")
def wanted(folders: dict[str, Path], cpu_library: object) -> dict[str, Said]:
    return {name: alone(folders, name, dtype="fp32") for name in (*MIXED, "alone")}


@pytest.mark.parametrize("name", KINDS)
def test_all_of_an_adapter_is_there(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    """It says what a model says into which it is merged."""
    engine = load(folders, name, dtype="fp32")
    engine.save_pretrained(tmp_path / "merged", adapter=name)
    merged = Engine.from_pretrained(tmp_path / "merged", device="cpu", dtype="fp32", max_batch=1)
    prompt = questions(name)[2]["prompt"]
    wanted, base = merged.score(prompt, PICTURES, "a cat"), engine.score(prompt, PICTURES, "a cat")
    found = engine.score(prompt, PICTURES, "a cat", adapter=name)
    assert found == pytest.approx(wanted, abs=ACTIVATION)
    assert found != pytest.approx(base, abs=100 * ACTIVATION)


def test_beams_of_different_adapters(folders: dict[str, Path]) -> None:
    def search(engine: Engine, items: list[dict[str, Any]]) -> Said:
        return ask(engine, items, beams=2, temperature=0.0, logprobs=0, seed=None)

    apart = [
        search(load(folders, name, dtype="fp32"), questions(name)[:2]) for name in ("base", "wide", "eyes")
    ]
    together = search(load(folders, *MIXED, dtype="fp32"), mixture("base", "wide", "eyes")[:6])
    assert together == [one for group in zip(*apart, strict=True) for one in group]


def test_replayed_steps(folders: dict[str, Path], wanted: dict[str, Said]) -> None:
    engine = load(folders, *MIXED, dtype="fp32", prefix_cache=False)
    recorder = engine._runner._recorder
    assert recorder is not None
    for _ in range(3):
        assert ask(engine, mixture(*MIXED)) == mixed(wanted, *MIXED)
        assert ask(engine, questions("base")) == wanted["base"]
        settled(recorder)
    assert {(8, False), (4, True)} <= settled(recorder)
    engine.load_adapter("alone", folders["alone"])
    assert not recorder._recorded, "they know the places of before"
    for _ in range(2):
        assert ask(engine, mixture(*MIXED)) == mixed(wanted, *MIXED)
        settled(recorder)


def test_adapters_come_and_go_while_others_stream(folders: dict[str, Path], wanted: dict[str, Said]) -> None:
    engine = load(folders, "narrow", "eyes", dtype="fp32")
    before = load(folders, dtype="fp32").memory()

    def stream(name: str, number: int) -> Any:
        item = questions(name)[number]
        options = {"max_tokens": 5, "temperature": 0.9, "seed": 5, "logprobs": 2, "ignore_eos": True}
        return engine.stream(item["prompt"], images=item["images"], adapter=name, **options)

    streams = [
        ("narrow", 0, stream("narrow", 0)),
        ("eyes", 2, stream("eyes", 2)),
        ("base", 1, stream("base", 1)),
    ]
    for _, _, events in streams:
        next(events)
    engine.load_adapter("wide", folders["wide"])
    streams.append(("wide", 3, stream("wide", 3)))
    late = stream("narrow", 1)  # has not begun when its adapter goes
    engine.unload_adapter("narrow")
    streams.append(("narrow", 1, late))
    next(streams[3][2])
    engine.unload_adapter("wide")
    for name, number, events in streams:
        assert len(list(events)) >= 3
        out = events.output
        assert (out.token_ids, out.logprobs, out.top_logprobs) == wanted[name][number], name
    assert engine.adapters == ("eyes",)
    engine.unload_adapter("eyes")
    assert engine.memory() == before


def test_an_adapter_that_changes_the_language_model_has_steps_of_its_own(
    folders: dict[str, Path], wanted: dict[str, Said]
) -> None:
    engine = load(folders, *MIXED, "alone", dtype="fp32")
    weights = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}
    seen, names = watched(engine), (*MIXED, "alone")
    for _ in range(2):  # the second time steps are replayed
        assert ask(engine, mixture(*names)) == mixed(wanted, *names)
    assert ["alone"] in seen
    assert all(step == ["alone"] or "alone" not in step for step in seen)
    assert ask(engine, questions("alone")) == wanted["alone"]
    engine.unload_adapter("alone")
    after = engine.model.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())


def test_pictures_encoded_for_one_adapter_leave_the_model_as_it_was(folders: dict[str, Path]) -> None:
    engine = load(folders, "eyes", "narrow", dtype="fp32")
    weights = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}
    base = engine.encode_images(PICTURES)
    assert not torch.equal(engine.encode_images(PICTURES, adapter="eyes"), base)
    assert torch.equal(engine.encode_images(PICTURES, adapter="narrow"), base)
    after = engine.model.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())
    with pytest.raises(RuntimeError):
        engine._runner.encode_images([torch.zeros(3, 7, 7)], engine._adapters.find("eyes"))
    assert torch.equal(engine.encode_images(PICTURES), base)


def test_a_model_with_updates_of_its_own_takes_no_adapter_for_them(folders: dict[str, Path]) -> None:
    plain = load(folders, dtype="fp32")
    attach(plain.model, LoraConfig.from_dict({"r": 2, "target_modules": r".*language_model.*v_proj"}))
    engine = Engine(plain.model, plain.tokenizer, plain.processor, max_batch=1)
    with pytest.raises(UnsupportedError, match="already carries a LoRA update"):
        engine.load_adapter("narrow", folders["narrow"])
    assert engine.adapters == ()


def test_the_bundled_adapter_beside_its_base() -> None:
    def engine_with(*names: str) -> Engine:
        engine = Engine.from_pretrained(device="cpu", max_context=256, max_batch=4)
        for name in names:
            engine.load_adapter(name, BUNDLED / "adapter", check_base=False)
        return engine

    def items(name: str) -> list[dict[str, Any]]:
        texts = ("Human: <image>\nHuman: What color is the star?\nAI: ", "Human: Hello!\nAI: ")
        return [
            {"prompt": text, "images": [SCENE] * text.count("<image>"), "adapter": name} for text in texts
        ]

    apart = [
        said for name in ("mine", "base") for item in items(name) for said in ask(engine_with("mine"), [item])
    ]
    assert apart[2:] == ask(engine_with(), items("base")) != apart[:2]
    both = engine_with("mine")
    seen = watched(both)
    assert ask(both, [*items("mine"), *items("base")]) == apart
    assert ["base", "mine"] in seen
