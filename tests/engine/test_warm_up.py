"""What a server does before the first request."""

from __future__ import annotations

import pytest

from owl_fast.engine.engine import Engine
from tests.golden_data import GOLDEN

PROMPT = "Human: " + "word " * 60 + "\nAI: "


def engine_(**options: int) -> Engine:
    return Engine.from_pretrained(GOLDEN / "micro/checkpoint", device="cpu", dtype="fp32", **options)


def test_steps_get_short_enough() -> None:
    """A limit that no machine keeps leaves a row for every answer, and changes none."""
    engine, other = engine_(max_batch=4), engine_(max_batch=4)
    assert other.warm_up(60.0) == other._loop.scheduler.step_tokens == 2048
    assert engine.warm_up(1e-9) == engine._loop.scheduler.step_tokens == 4
    before = engine.stats().steps
    answers = [one.generate(PROMPT, max_tokens=8) for one in (engine, other)]
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].logprobs == pytest.approx(answers[1].logprobs, abs=1e-5)
    assert engine.stats().steps - before > answers[0].usage.prompt_tokens / 4


@pytest.mark.parametrize("context", [2, 3, 10, 33, 300])
def test_whatever_the_context(context: int) -> None:
    engine = engine_(max_context=context, max_batch=3)
    assert engine.warm_up(60.0) == 2048
    stats = engine.stats()
    assert stats.failed == 0
    assert stats.blocks_free == stats.blocks
