"""Decode steps through kernels: what they launch, that they can be recorded, that replays say the same."""

from __future__ import annotations

import time
from contextlib import nullcontext

import pytest
import torch

from benchmarks.gate.counting import FREE, Operators
from owl_fast import Engine, ops
from owl_fast.config import OwlConfig
from owl_fast.engine.graphs import BUCKETS, DecodeInputs, Recorder, Work, cpu_capture
from owl_fast.engine.kv_cache import KVCache
from owl_fast.kernels import cpu_calls
from owl_fast.kernels.launch import recording
from owl_fast.models.owl import Owl
from tests.golden_data import Golden

CPU = torch.device("cpu")


def released() -> OwlConfig:
    return OwlConfig.from_dict({})


@pytest.mark.parametrize("rows", [size for size in BUCKETS if size <= 64], ids=lambda rows: f"B{rows}")
@torch.no_grad()
def test_a_decode_step_of_7b_is_five_launches_a_layer_and_nothing_else(rows: int) -> None:
    """On tensors without contents, of which nobody can ask a value."""
    with torch.device("meta"):
        model = Owl(released()).to(torch.bfloat16)
    layers = model.config.llama.num_hidden_layers
    assert layers == 32
    meta = torch.device("meta")
    inputs = DecodeInputs(KVCache(model.config.llama, 128, torch.bfloat16, meta), rows, 8, meta)
    with recording() as recorder:
        model.logits(model(inputs.batch))  # what is made once: tables of angles, the workspace
        recorder.launches.clear()
        with Operators() as operations:
            model.logits(model(inputs.batch))
    assert set(operations.seen) <= FREE
    assert len(recorder.launches) <= 5 * layers + 3


def recorded(work: Work) -> Work:
    """Stands for a CUDA graph: works on the same tensors every time."""
    work()
    return work


def answers(engine: Engine) -> list[tuple[list[int], list[float]]]:
    prompts = [{"prompt": text} for text in ("a", "b", "c d")]
    outputs = engine.generate(prompts, max_tokens=2, temperature=0.8, seed=4, ignore_eos=True)
    return [(out.token_ids, out.logprobs) for out in outputs]


def settled(recorder: Recorder) -> set[object]:
    """What is recorded, once no thread records any more."""
    while recorder._wanted:
        time.sleep(0.01)
    return set(recorder._recorded)


def test_a_replayed_step_says_what_an_eager_one_says() -> None:
    """Three rows in a bucket of four: the row in excess changes nothing."""
    with ops.kernels(True):
        engine = Engine.from_pretrained(
            Golden("micro").checkpoint, device="cpu", dtype="fp32", max_batch=4, prefix_cache=False
        )
        recorder = Recorder(engine._loop.between_steps, recorded)
        engine._runner.record(recorder, 4, engine.max_context)
        first = answers(engine)
        assert settled(recorder) == {(4, True)}
        assert answers(engine) == first
        engine._runner.hold_adapters([None])
        assert settled(recorder) == {(4, True)}, "nothing has changed"


def test_a_recording_that_fails_leaves_eager_steps(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(work: Work) -> Work:
        raise RuntimeError("out of memory")

    recorder = Recorder(lambda: nullcontext(), refuse)
    for _ in range(3):
        assert recorder.run("key", lambda: torch.ones(2)).tolist() == [1, 1]
        settled(recorder)
    assert [record.message for record in caplog.records] == [
        "steps are not recorded and run slower: out of memory"
    ]


def conversation(engine: Engine, count: int = 3) -> list[tuple[list[int], list[float]]]:
    prompts = [{"prompt": text} for text in ("a", "b c d e f", "c d", "a b c")[:count]]
    outputs = engine.generate(prompts, max_tokens=6, temperature=0.0, ignore_eos=True)
    return [(out.token_ids, out.logprobs) for out in outputs]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("quant", ["none", "int8", "int4"])
def test_a_cpu_repeats_its_calls(quant: str, dtype: str, cpu_library: object) -> None:
    """One row and three, again and again, with the bits of steps that are not recorded."""
    options = {"device": "cpu", "dtype": dtype, "quant": quant, "max_batch": 4}
    engine = Engine.from_pretrained(Golden("micro").checkpoint, **options)
    recorder = engine._runner._recorder
    assert recorder is not None
    eager = Engine.from_pretrained(Golden("micro").checkpoint, **options)
    eager._runner._recorder = None
    for count in (1, 3, 3, 1):
        assert conversation(engine, count) == conversation(eager, count)
        settled(recorder)
    assert settled(recorder) == {(1, True), (3, True)}
    assert conversation(engine) == conversation(eager)


@torch.inference_mode()
def test_a_cpus_decode_step_is_calls_and_nothing_else(cpu_library: object) -> None:
    engine = Engine.from_pretrained(Golden("micro").checkpoint, device="cpu", dtype="fp32", quant="int4")
    model = engine.model
    inputs = DecodeInputs(KVCache(model.config.llama, 8, torch.float32, CPU), 3, 8, CPU)
    model.logits(model(inputs.batch))  # the tables of angles
    with Operators() as operations, cpu_calls.recording() as calls:
        model.logits(model(inputs.batch))
    # The embedding is a call that torch carries out.
    assert set(operations.seen) <= FREE | {"index_select"}
    assert len(calls) == 5 * model.config.llama.num_hidden_layers + 3


def test_a_recording_that_says_something_else_is_not_believed(
    cpu_library: object, caplog: pytest.LogCaptureFixture
) -> None:
    """Of work that is more than calls of the library."""
    x = torch.zeros(2)
    again = cpu_capture(lambda: x + 1)
    for value in (1.0, 2.0, 3.0):
        x.fill_(value)
        assert again().tolist() == [value + 1] * 2
    assert [record.message for record in caplog.records] == [
        "steps are not recorded and run slower: a recording said something else"
    ]
