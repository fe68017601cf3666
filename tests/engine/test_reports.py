"""Engine.memory and Engine.stats: the numbers are those of the tensors and the requests."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pytest
from torch.profiler import ProfilerActivity, profile

from owl_fast import Engine
from owl_fast.engine.outputs import Timings, Usage
from owl_fast.errors import ParameterError
from owl_fast.models.layers import Linear
from tests.golden_data import NAMES, Golden, image_files


def load(name: str, **options: Any) -> Engine:
    return Engine.from_pretrained(Golden(name).checkpoint, device="cpu", dtype="fp32", **options)


def test_memory_is_that_of_the_tensors() -> None:
    engine = load("micro", max_batch=2, max_context=64)
    memory = engine.memory()
    assert memory.weights == sum(parameter.nbytes for parameter in engine.model.parameters())
    assert memory.cache == sum(t.nbytes for layer in engine._runner.cache.layers for t in layer)
    assert memory.adapters == 0
    engine.load_adapter("a", Golden("micro").adapter)
    with_adapter = engine.memory()
    read = sum(tensor.nbytes for tensor in engine._adapters.find("a").tensors)  # type: ignore[union-attr]
    stacks = [m.stack for m in engine.model.modules() if isinstance(m, Linear) and m.stack is not None]
    assert with_adapter.adapters == read + sum(t.nbytes for stack in stacks for t in stack[:3]) > read > 0
    assert with_adapter.weights == memory.weights
    assert with_adapter.total == memory.total + with_adapter.adapters


def peak_bytes(run: Callable[[], object]) -> int:
    """The most that torch's allocator held at one time for what `run` did."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(accumulate(size for _, size in changes))


@pytest.mark.parametrize("name", NAMES)
def test_activations_are_estimated_well_enough_to_plan_with(name: str) -> None:
    engine = load(name, max_batch=4, max_context=256)
    prompts = [f"{i}" + "word " * 80 for i in range(4)]  # nearly the whole context each
    estimate = engine.memory().activations
    answers = peak_bytes(lambda: engine.generate(prompts, max_tokens=1))
    picture = peak_bytes(lambda: engine.encode_images(image_files()[:1]))
    assert 0.6 < estimate / max(answers, picture) < 1.6


def test_stats_count_requests_tokens_and_time() -> None:
    engine = load("micro", max_batch=2)
    first = engine.generate("<image>AI: ", images=image_files()[:1], max_tokens=3, ignore_eos=True)
    second = engine.generate(["AI: ", "AI: "], max_tokens=2, ignore_eos=True)
    assert isinstance(second, list)
    stats = engine.stats()
    assert (stats.requests, stats.answered, stats.waiting, stats.running) == (3, 3, 0, 0)
    assert stats.usage == first.usage + second[0].usage + second[1].usage
    assert stats.usage.completion_tokens == 7
    assert stats.timings.image_ms >= first.timings.image_ms > 0
    assert 0 < stats.busy_seconds <= stats.seconds
    with engine.stream("AI: ", max_tokens=5, ignore_eos=True) as stream:
        next(stream)
        assert engine.stats().running == 1
    assert (engine.stats().cancelled, engine.stats().running) == (1, 0)


def test_sums() -> None:
    assert Usage(1, 2, 3, 4) + Usage(10, 20, 30, 40) == Usage(11, 22, 33, 44)
    total = Timings(1, 2, 3, 4, 5, 6) + Timings(1, 1, 1, 1, 1, 1)
    assert total == Timings(2, 3, 4, 5, 6, 7)


def test_an_unknown_option_is_named_with_what_was_meant() -> None:
    engine = load("micro", max_batch=1)
    with pytest.raises(ParameterError, match=r"no option 'temprature'; did you mean temperature\?"):
        engine.generate("AI: ", temprature=0.5)
    with pytest.raises(ParameterError, match="no option 'zzz'; wanted one of max_tokens, temperature"):
        engine.stream("AI: ", zzz=1)
