"""A runner without a model, for tests of the scheduler and the loop.

It keeps token ids where keys and values would be; its logits are a function of what the block tables show:
a wrong table, slot, copy or fork changes the answer or fails at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from owl_fast.engine.beam import BeamSearch
from owl_fast.engine.kv_cache import BlockAllocator
from owl_fast.engine.loop import Loop
from owl_fast.engine.outputs import TextStream
from owl_fast.engine.request import Request
from owl_fast.engine.sampling import SamplingParams, choose, process_scores
from owl_fast.engine.scheduler import Scheduler, StepPlan
from owl_fast.lora import Adapter

BOS, EOS, VOCAB, BLOCK = 1, 2, 23, 4


def logits_after(prefix: Sequence[int]) -> Tensor:
    """(VOCAB,) float32, different for every prefix."""
    digest = hashlib.blake2b(repr(list(prefix)).encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
    return 2 * torch.randn(VOCAB, generator=generator)


class PlainDecoder:
    """Every id is one letter: 0 -> a, 1 -> b ...; special ids give nothing."""

    def push(self, token_id: int) -> str:
        return "" if token_id in (BOS, EOS) else chr(ord("a") + token_id)

    def flush(self) -> str:
        return ""


class FakeRunner:
    def __init__(self, num_blocks: int) -> None:
        self.slots: list[list[int | None]] = [[None] * BLOCK for _ in range(num_blocks)]
        self.poison: set[tuple[int, ...]] = set()
        self.largest_step = 0
        self.adapter: Adapter | None = None

    def use_adapter(self, adapter: Adapter | None) -> None:
        self.adapter = adapter

    def encode_images(self, pixels: Tensor) -> Tensor:
        return pixels

    def run(self, plan: StepPlan) -> Tensor:
        for source, target in plan.copies:
            self.slots[target] = list(self.slots[source])
        self.largest_step = max(self.largest_step, sum(span.end - span.start for span in plan.spans))
        rows = []
        assert all(span.request.adapter is self.adapter for span in plan.spans)
        for span in plan.spans:
            table = span.sequence.table
            for position in range(span.start, span.end):
                self.slots[table[position // BLOCK]][position % BLOCK] = span.sequence.token_ids[position]
        for span in plan.spans:
            table = span.sequence.table
            visible = [self.slots[table[p // BLOCK]][p % BLOCK] for p in range(span.end)]
            assert visible == span.sequence.token_ids[: span.end]
            for position in range(span.logits_from, span.end):
                prefix = span.sequence.token_ids[: position + 1]
                row = logits_after(prefix)
                rows.append(row * torch.nan if tuple(prefix) in self.poison else row)
        return torch.stack(rows) if rows else torch.empty(0, VOCAB)


def make_loop(num_blocks: int = 24, max_batch: int = 4, step_tokens: int = 7) -> Loop:
    scheduler = Scheduler(BlockAllocator(num_blocks, BLOCK), max_batch, step_tokens)
    return Loop(scheduler, FakeRunner(num_blocks), EOS)


def make_request(
    prompt: Sequence[int], params: SamplingParams | None = None, adapter: Adapter | None = None
) -> Request:
    params = params or SamplingParams(max_tokens=6)
    assert params.max_tokens is not None
    return Request(
        prompt_ids=list(prompt),
        params=params,
        max_tokens=params.max_tokens,
        seed=params.seed or 0,
        bos_id=BOS,
        text=TextStream(PlainDecoder(), params.stop_strings),
        beams=BeamSearch(params, BOS, EOS, params.max_tokens) if params.beams > 1 else None,
        adapter=adapter,
    )


def expected(prompt: Sequence[int], params: SamplingParams) -> list[int]:
    """The answer of one request by itself, without cache, scheduler or loop."""
    assert params.max_tokens is not None
    if params.beams > 1:
        search = BeamSearch(params, BOS, EOS, params.max_tokens)
        while not search.done:
            rows = [logits_after([*prompt, *beam.token_ids]) for beam in search.live]
            search.advance(torch.log_softmax(torch.stack(rows), -1))
        return list(search.best.beam.token_ids)
    generated: list[int] = []
    while len(generated) < params.max_tokens and (not generated or generated[-1] != EOS):
        scores = process_scores(logits_after([*prompt, *generated]), [BOS, *generated], params, EOS)
        token = choose(scores, params, params.seed or 0, len(generated))
        assert token is not None
        generated.append(token)
    return generated


def run_to_end(loop: Loop, *requests: Request) -> None:
    for _ in range(2000):
        if all(request.finished for request in requests):
            return
        loop.step()
    raise AssertionError("a request never ends")
