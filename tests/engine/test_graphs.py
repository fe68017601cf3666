"""Decode steps through kernels: what they launch, that they can be recorded, that replays say the same."""

from __future__ import annotations

import time
from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from owl_fast import Engine, ops
from owl_fast.config import OwlConfig
from owl_fast.engine.graphs import BUCKETS, DecodeInputs, Recorder, Work
from owl_fast.engine.kv_cache import KVCache
from owl_fast.kernels.launch import recording
from owl_fast.models.owl import Owl
from tests.golden_data import Golden

# What makes room or looks at the same memory in another way: nothing that a device computes.
FREE = {
    *("alias", "as_strided", "detach", "empty", "empty_strided", "expand", "new_empty", "select", "slice"),
    *(
        "split",
        "split_with_sizes",
        "squeeze",
        "t",
        "transpose",
        "unbind",
        "unsqueeze",
        "view",
        "_unsafe_view",
    ),
}


class Operations(TorchDispatchMode):
    """Names of torch's own operations."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.seen.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


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
        with Operations() as operations:
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
        engine = Engine.from_pretrained(Golden("micro").checkpoint, device="cpu", dtype="fp32", max_batch=4)
        recorder = Recorder(engine._loop.between_steps, recorded)
        engine._runner.record(recorder, 4, engine.max_context)
        first = answers(engine)
        assert settled(recorder) == {4}
        assert answers(engine) == first
        engine._runner.use_adapter(None)
        assert settled(recorder) == {4}, "nothing has changed"


def test_a_recording_that_fails_leaves_eager_steps(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(work: Work) -> Work:
        raise RuntimeError("out of memory")

    recorder = Recorder(lambda: nullcontext(), refuse)
    for _ in range(3):
        assert recorder.run("key", lambda: torch.ones(2)).tolist() == [1, 1]
        settled(recorder)
    assert [record.message for record in caplog.records] == [
        "CUDA graphs are off, steps run eagerly and slower: out of memory"
    ]
