"""Engines of the reference models, and what the original answered."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from owl_fast import Engine
from owl_fast.engine.outputs import Output
from tests.golden_data import Golden, image_files
from tests.tolerances import SAME_RUN

CASES = ("text_only", "one_image", "two_images", "two_turns", "batch_images_sample0", "batch_images_sample1")
IMAGES = image_files()


@functools.cache
def engine_of(name: str) -> Engine:
    return Engine.from_pretrained(Golden(name).checkpoint, device="cpu", dtype="fp32", max_batch=4)


def case_of(name: str, case: str) -> dict[str, Any]:
    meta = Golden(name).meta(f"generate_{case}")
    return {"prompt": meta["prompts"][0], "images": [IMAGES[index] for index in meta["image_index"]]}


def held_blocks(engine: Engine) -> int:
    """Blocks of the cache that somebody holds: 0 when nothing leaked."""
    allocator = engine._loop.scheduler.allocator
    return allocator.num_blocks - allocator.free_blocks


def assert_same(ours: Output, other: Output, tolerance: float = SAME_RUN) -> None:
    assert ours.token_ids == other.token_ids
    assert ours.text == other.text
    assert ours.finish_reason == other.finish_reason
    assert ours.logprobs == pytest.approx(other.logprobs, abs=tolerance)
