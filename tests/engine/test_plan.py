"""The plan made before loading: near what loading and answering take, and what "auto" makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from owl_fast import Engine, machine, ops
from owl_fast.checkpoints import open_source, save_model
from owl_fast.checkpoints.load import empty_model
from owl_fast.config import OwlConfig, Quantization
from owl_fast.engine.plan import Setup, choose
from owl_fast.errors import ParameterError, UnsupportedError
from owl_fast.models.layers import init_weights
from tests.golden_data import Golden, image_files

TINY = Golden("tiny").checkpoint
CPU = torch.device("cpu")
FULL = OwlConfig.mplug_owl_7b()
GIB = 1 << 30


def peak_bytes(run: Callable[[], object]) -> int:
    """The most that torch's allocator held at one time for what `run` did."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(accumulate(size for _, size in changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 7 million weights in the proportions of the 7B one, with tiny's tokenizer."""
    config = open_source(TINY).config
    llama = replace(
        config.llama,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    model = empty_model(replace(config, llama=llama)).to_empty(device="cpu")
    init_weights(model, seed=0)
    folder = tmp_path_factory.mktemp("plan") / "model"
    save_model(model, folder, side_files=TINY)
    return folder


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("quant", "quant_vision"), [("none", None), ("int8", None), ("int4", "int8")], ids=str
)
def test_the_plan_is_near_the_measured_peak(
    folder: Path, quant: str, quant_vision: str | None, dtype: str
) -> None:
    """Of loading the model and answering prompts as long as the context, with a picture."""
    config = open_source(folder).config
    setup = Setup(CPU, {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype], 256, 2, picture_cache_mb=0)
    plan = setup.memory(choose(config, setup, quant, quant_vision))

    def work() -> None:
        engine = Engine.from_pretrained(
            folder,
            device="cpu",
            dtype=dtype,
            quant=quant,
            quant_vision=quant_vision,
            max_context=256,
            max_batch=2,
            picture_cache_mb=0,  # planned as if it were full
            prefix_cache=False,  # equal prompts are computed beside each other
        )
        memory = engine.memory()
        assert replace(memory, weights=plan.weights) == plan
        # On CPUs int4's scales take less than in files.
        assert 0.94 * plan.weights < memory.weights <= plan.weights
        engine.generate(["word " * 80] * 2, max_tokens=2)
        engine.encode_images(image_files()[:1])

    assert 0.9 < plan.total / peak_bytes(work) < 1.1


@pytest.mark.parametrize(
    ("free", "held"),
    [(40, None), (18, None), (15, "int8"), (9.4, "int8"), (9, "int4"), (6.5, "int4")],
)
def test_auto_takes_the_largest_that_fits(
    free: float, held: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda device: int(free * GIB))
    chosen = choose(FULL, Setup(CPU, torch.bfloat16, 2048, 1), "auto", None)
    assert (chosen.quantization and chosen.quantization.scheme) == held


def test_what_would_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda device: 7 * GIB)
    with pytest.raises(UnsupportedError) as caught:
        choose(FULL, Setup(CPU, torch.bfloat16, 2048, 8), "auto", None)
    said = str(caught.value)
    for part in ("as int4", "max_context 2048", "max_batch 8", "7.00 GiB free on cpu", "max_context=256"):
        assert part in said
    monkeypatch.setattr(machine, "free_memory", lambda device: GIB)
    with pytest.raises(UnsupportedError, match="it needs a larger machine"):
        choose(FULL, Setup(CPU, torch.bfloat16, 2048, 8), "auto", None)


def test_the_memory_of_a_gpu_that_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda device: (4 if device.type == "cuda" else 64) * GIB)
    monkeypatch.setattr(machine, "device_name", lambda device: "cuda:0 GPU")
    monkeypatch.setattr(ops, "backend", lambda device: "torch" if device.type == "cpu" else "triton")
    with pytest.raises(UnsupportedError, match=r'4.00 GiB free on cuda:0 GPU; what would fit: device="cpu"'):
        choose(FULL, Setup(torch.device("cuda"), torch.bfloat16, 2048, 1), "auto", None)


def test_only_auto_asks_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda device: 0)
    setup = Setup(CPU, torch.bfloat16, 2048, 1)
    assert choose(FULL, setup, None, None) == choose(FULL, setup, "none", "none") == FULL
    assert choose(FULL, setup, "int4", None).quantization == Quantization("int4")
    assert choose(FULL, setup, None, "int8").quantization == Quantization(None, "int8")


def test_quantized_files_have_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_memory", lambda device: 64 * GIB)
    setup = Setup(CPU, torch.bfloat16, 2048, 1)
    held = replace(FULL, quantization=Quantization("int4", None, 64))
    for quant, vision in ((None, None), ("auto", None), ("int4", None), (None, "none")):
        assert choose(held, setup, quant, vision) == held
    for quant, vision in (("int8", None), ("none", None), ("auto", "int8")):
        with pytest.raises(UnsupportedError, match=r"hold its weights as int4-g64, and .* is asked for"):
            choose(held, setup, quant, vision)


@pytest.mark.parametrize(
    ("quant", "vision", "said"), [("int3", None, "quant 'int3'"), (None, "int4", "int8")]
)
def test_other_words_are_refused(quant: str | None, vision: str | None, said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        choose(FULL, Setup(CPU, torch.bfloat16, 2048, 1), quant, vision)


def test_an_engine_holds_and_saves_what_was_asked_for(tmp_path: Path) -> None:
    options = {"device": "cpu", "dtype": "fp32", "max_batch": 1, "max_context": 64}
    engine = Engine.from_pretrained(TINY, quant="int4", quant_vision="int8", **options)
    assert engine.config.quantization == Quantization("int4", "int8")
    answer = engine.generate("<image>AI: ", images=image_files()[:1], max_tokens=4)
    engine.save_pretrained(tmp_path / "a")
    again = Engine.from_pretrained(tmp_path / "a", **options)
    assert again.config == engine.config
    assert again.generate("<image>AI: ", images=image_files()[:1], max_tokens=4).token_ids == answer.token_ids
    assert again.memory() == engine.memory()
    assert engine.memory().weights < 0.7 * Engine.from_pretrained(TINY, **options).memory().weights
