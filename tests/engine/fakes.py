"""A runner without a model, for tests of the scheduler and the loop.

It keeps what a position holds where keys and values would be; its logits are a function of what the block
tables show: a wrong table, slot, copy, share or fork changes the answer or fails at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from owl_fast.engine.beam import BeamSearch
from owl_fast.engine.blocks import BlockAllocator
from owl_fast.engine.loop import Loop
from owl_fast.engine.outputs import TextStream
from owl_fast.engine.pictures import Picture
from owl_fast.engine.request import Request
from owl_fast.engine.sampling import SamplingParams, choose, process_scores
from owl_fast.engine.scheduler import Scheduler, Span, StepPlan
from owl_fast.engine.speculation import Guesser
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


def units_to_the_end(span: Span) -> list[int]:
    """What all positions hold after the span, its guesses included."""
    known = span.request.units(span.sequence, 0, span.end - len(span.guesses))
    return [*known, *span.guesses]


class FakeRunner:
    def __init__(self, num_blocks: int) -> None:
        self.slots: list[list[int | None]] = [[None] * BLOCK for _ in range(num_blocks)]
        self.poison: set[tuple[int, ...]] = set()
        self.largest_step = 0
        self.breaks = ""  # the method that raises
        self.computed = 0
        self.held: set[Adapter | None] = set()

    def _break(self, method: str) -> None:
        if self.breaks == method:
            raise MemoryError

    def hold_adapters(self, used: Iterable[Adapter | None]) -> None:
        self._break("hold_adapters")
        self.held = set(used)

    def encode(self, span: Span) -> tuple[int, int]:
        pictures, *_ = span.request.pictures_in(span.start, span.end)
        wanted = [picture for picture in pictures if picture.rows is None]
        if wanted:
            self._break("encode")
        for picture in wanted:
            picture.rows = picture.pixels
        return len(wanted), 0

    def run(self, plan: StepPlan) -> Tensor:
        self._break("run")
        assert plan.spans
        before = [list(slots) for slots in self.slots]
        for source, target in plan.copies:
            self.slots[target] = list(before[source])
        self.largest_step = max(self.largest_step, sum(span.end - span.start for span in plan.spans))
        rows = []
        adapters = {span.request.adapter for span in plan.spans}
        assert adapters <= self.held
        assert len(adapters) < 2 or not any(adapter and adapter.runs_alone for adapter in adapters)
        for span in plan.spans:
            table = span.sequence.table
            for position, held in enumerate(units_to_the_end(span)[span.start :], span.start):
                self.slots[table[position // BLOCK]][position % BLOCK] = held
            self.computed += span.end - span.start
        for span in plan.spans:
            table = span.sequence.table
            visible = [self.slots[table[p // BLOCK]][p % BLOCK] for p in range(span.end)]
            units = units_to_the_end(span)
            assert visible == units
            for position in range(span.logits_from, span.end):
                prefix = units[: position + 1]
                row = logits_after(prefix)
                rows.append(row * torch.nan if tuple(prefix) in self.poison else row)
        return torch.stack(rows) if rows else torch.empty(0, VOCAB)


def make_loop(
    num_blocks: int = 24,
    max_batch: int = 4,
    step_tokens: int = 7,
    guessed_rows: int = 0,
    keep: bool = True,
) -> Loop:
    scheduler = Scheduler(BlockAllocator(num_blocks, BLOCK, keep), max_batch, step_tokens, guessed_rows)
    return Loop(scheduler, FakeRunner(num_blocks), EOS)


def make_request(
    prompt: Sequence[int],
    params: SamplingParams | None = None,
    adapter: Adapter | None = None,
    client: str = "",
    pictures: Sequence[Picture] = (),
    score_from: int | None = None,
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
        client=client,
        pictures=pictures,
        score_from=score_from,
        root=str(id(adapter)).encode(),
    )


def expected_scores(request: Request) -> list[float]:
    """Log-probs of the ids from score_from on."""
    units, first = request._units, request.score_from
    assert first is not None
    rows = [torch.log_softmax(logits_after(units[:place]), -1) for place in range(first, len(units))]
    return [float(row[token]) for row, token in zip(rows, units[first:], strict=True)]


def expected(request: Request, params: SamplingParams | None = None) -> list[int]:
    """The answer to the request's prompt by itself, without cache, scheduler or loop."""
    params, prompt = params or request.params, request._units
    assert params.max_tokens is not None
    if params.beams > 1:
        search = BeamSearch(params, BOS, EOS, params.max_tokens)
        while not search.done:
            rows = [logits_after([*prompt, *beam.token_ids]) for beam in search.live]
            search.advance(torch.log_softmax(torch.stack(rows), -1))
        return list(search.best.beam.token_ids)
    generated: list[int] = []
    while len(generated) < params.max_tokens and (params.ignore_eos or EOS not in generated):
        scores = process_scores(logits_after([*prompt, *generated]), [BOS, *generated], params, EOS)
        token = choose(scores, params, params.seed or 0, len(generated))
        assert token is not None
        generated.append(token)
    return generated


class Oracle(Guesser):
    """Knows the answer, and is wrong at every fourth place."""

    def __init__(self, request: Request) -> None:
        super().__init__(request.prompt_ids)
        self._start, self._answer = len(request.prompt_ids), expected(request)

    def guess(self, most: int) -> list[int]:
        said = len(self._ids) - self._start
        coming = enumerate(self._answer[said : said + most], said)
        return [token if place % 4 else (token + 1) % VOCAB for place, token in coming]


def runner_of(loop: Loop) -> FakeRunner:
    assert isinstance(loop.runner, FakeRunner)
    return loop.runner


def run_alone(loop: Loop, request: Request) -> None:
    loop.submit(request)
    run_to_end(loop, request)


def run_to_end(loop: Loop, *requests: Request) -> None:
    for _ in range(2000):
        if all(request.finished for request in requests):
            return
        loop.step()
    raise AssertionError("a request never ends")
