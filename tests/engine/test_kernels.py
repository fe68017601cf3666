"""The engine through Triton's kernels: the original's answers, and what its steps launch for the cache."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from owl_fast import Engine, ops
from owl_fast.engine.kv_cache import KVCache
from owl_fast.kernels.launch import recording
from tests.golden_data import Golden, image_files
from tests.tolerances import ACTIVATION

CASE = "generate_one_image"
TOKENS = 3


def engine_on(device: torch.device, cache: torch.dtype) -> Engine:
    engine = Engine.from_pretrained(Golden("micro").checkpoint, device=str(device), dtype="fp32", max_batch=1)
    blocks = engine._runner.cache.num_blocks
    with ops.kernels(True):  # in their order
        engine._runner.cache = KVCache(engine.model.config.llama, blocks, cache, device)
    return engine


def test_greedy_answer_is_the_originals(device: torch.device) -> None:
    """One launch a layer for every new token, two for the prompt."""
    stored, meta = Golden("micro").tensors(CASE), Golden("micro").meta(CASE)
    engine = engine_on(device, torch.float32)
    with ops.kernels(True), recording() as recorder:
        out = engine.generate(
            meta["prompts"][0], images=[image_files()[i] for i in meta["image_index"]], max_tokens=TOKENS
        )
    assert out.token_ids == stored["new_ids"][0, :TOKENS].tolist()
    assert out.logprobs == pytest.approx(stored["logprobs"][0, :TOKENS].tolist(), abs=ACTIVATION)
    layers = engine.model.config.llama.num_hidden_layers
    launched = Counter(launch.name for launch in recorder.launches)
    assert launched["_decode_attention_kernel"] == (TOKENS - 1) * layers
    assert launched["_paged_attention_kernel"] == launched["_rotary_append_kernel"] == layers


def test_int8_cache_answers_as_its_reference(device: torch.device) -> None:
    engine = engine_on(device, torch.int8)
    answers = []
    for used in (False, True):
        with ops.kernels(used):
            answers.append(engine.generate("AI: a", max_tokens=TOKENS))
    plain, ours = answers
    assert ours.token_ids == plain.token_ids
    assert ours.logprobs == pytest.approx(plain.logprobs, abs=ACTIVATION)
