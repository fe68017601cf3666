"""The step loop: requests go in, every `step` moves all running ones on by one batch.

A request can only fail itself: logits that are not finite end the request they belong to and no other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from owl_fast import ops
from owl_fast.engine.device_sampler import DeviceSampler
from owl_fast.engine.outputs import Event, FinishReason, Output, joined
from owl_fast.engine.reports import Stats, Tally
from owl_fast.engine.request import Request
from owl_fast.engine.sampling import choose, finite_rows, log_probs, process_scores
from owl_fast.engine.scheduler import Scheduler, Span, StepPlan
from owl_fast.errors import OwlError
from owl_fast.lora import Adapter

_log = logging.getLogger("owl_fast")

NOT_FINITE = "the model produced numbers that are not finite; nothing more can be said"
NONE_ALLOWED = "no_repeat_ngram and min_tokens forbid every token; loosen them"


class StepRunner(Protocol):
    """What the loop needs of a runner (see runner.Runner)."""

    def hold_adapters(self, used: Iterable[Adapter | None], /) -> None: ...

    def encode(self, span: Span, /) -> tuple[int, int]: ...

    def run(self, plan: StepPlan, /) -> Tensor: ...


class Loop:
    """Scheduler and runner together, for any number of threads.

    One thread at a time is in a step, which moves everybody's requests; the others wait for its end and look
    whether theirs is answered. `submit`, and setting `cancelled` of a request, never wait.
    """

    def __init__(
        self, scheduler: Scheduler, runner: StepRunner, eos_id: int, sampler: DeviceSampler | None = None
    ) -> None:
        """sampler: draws on the device what it can; without one every row is looked at on the host."""
        self.scheduler = scheduler
        self._sampler = sampler
        self.runner = runner
        self.eos_id = eos_id
        self.tally = Tally()
        self._arrived: deque[Request] = deque()
        self._turn = threading.Condition()
        self._stepping: int | None = None  # the thread that is in a step
        self._guests = 0  # threads that want the model between two steps
        self._sign_of_life = 0.0  # when there was one, while there is work

    def submit(self, request: Request) -> None:
        if not self._has_work:
            self._sign_of_life = time.monotonic()
        self._arrived.append(request)

    def reap(self) -> None:
        """Finish the cancelled requests and free what they hold; adapters that were loaded come in, those
        that nobody needs any more go."""
        with self.between_steps():
            self._reap()

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """No step runs inside the block: what it does to the model happens between two."""
        with self._turn:
            self._guests += 1
            try:
                self._turn.wait_for(lambda: self._stepping is None)
                yield
            finally:
                self._guests -= 1
                self._turn.notify_all()

    def step(self) -> None:
        """Finish the cancelled, start what fits, compute one batch, give every complete row its next token.

        When another thread is doing that, wait for its end instead. If the model itself fails, the running
        requests end with an error, their blocks are freed, and the exception goes on to the caller; the next
        step starts clean.
        """
        thread = threading.get_ident()
        try:
            with self._turn:
                if self._stepping is not None or self._guests:
                    self._turn.wait()
                    return
                self._stepping = thread
            self._step()
        finally:
            # Also when Ctrl-C comes anywhere above: a step that is left must not look like one that runs.
            if self._stepping == thread:
                with self._turn:
                    self._stepping = None
                    self._turn.notify_all()

    def step_for(self, requests: Seq[Request]) -> None:
        """A step, on behalf of these requests. What it raises comes out if one of them failed with it; else
        it is logged, for it was others that it hit."""
        before = sum(request.error is not None for request in requests)
        try:
            self.step()
        except Exception:
            if sum(request.error is not None for request in requests) > before:
                raise
            _log.exception("a step failed")

    def complete(self, requests: Seq[Request]) -> list[Output]:
        """Submit them and step until all have ended; left early, they are taken out again."""
        for request in requests:
            self.submit(request)
        try:
            while not all(request.finished for request in requests):
                self.step_for(requests)
        finally:
            left = [request for request in requests if not request.finished]
            for request in left:
                request.cancelled = True
            if left:
                self.reap()
        return [request.output for request in requests]

    def answer(self, requests: Seq[Request]) -> Output:
        """The answers to one prompt; OwlError when one failed."""
        results = self.complete(requests)
        for result in results:
            if result.finish_reason == "error":
                raise OwlError(result.error)
        return joined(results)

    def stats(self) -> Stats:
        scheduler, now = self.scheduler, time.monotonic()
        arrived = len(self._arrived)
        return self.tally.stats(
            arrived=arrived,
            waiting=arrived + len(scheduler.waiting),
            running=len(scheduler.running),
            blocks=scheduler.allocator.num_blocks,
            blocks_free=scheduler.allocator.free_blocks,
            silent_seconds=now - self._sign_of_life if self._has_work else 0.0,
        )

    @property
    def _has_work(self) -> bool:
        scheduler = self.scheduler
        return bool(self._arrived or scheduler.running or scheduler.waiting or self._stepping is not None)

    def _step(self) -> None:
        begin = time.perf_counter()
        self._sign_of_life = time.monotonic()
        reaped = False
        try:
            self._reap()
            reaped = True
            self._advance()
        except BaseException as error:
            # What waits would meet adapters that cannot be held again and again.
            stuck = isinstance(error, Exception) and not reaped
            waiting = tuple(self.scheduler.waiting) if stuck else ()
            for request in (*self.scheduler.running, *waiting):
                self._fail(request, f"the step failed: {type(error).__name__}")
            self.scheduler.allocator.forget_contents()  # who knows how far it got
            self.tally.failed_steps += 1
            raise
        finally:
            self._sign_of_life = time.monotonic()
            self.tally.busy_seconds += time.perf_counter() - begin

    def _reap(self) -> None:
        while self._arrived:
            self.tally.requests += 1
            self.scheduler.add(self._arrived.popleft())
        for request in self.scheduler.cancelled:
            self._close(request, "cancelled")
        requests = (*self.scheduler.running, *self.scheduler.waiting)
        self.runner.hold_adapters({request.adapter for request in requests})

    def _advance(self) -> None:
        for request in self.scheduler.admit():
            if not request.clock.started:
                request.clock.started = time.perf_counter()
                request.cached = request.sequences[0].computed
        if not self.scheduler.running:
            return
        plan = self.scheduler.plan()
        for request in plan.preempted:
            self._forget(request)
        self.tally.preemptions += len(plan.preempted)
        self.tally.steps += 1
        for span in plan.spans:
            self._encode(span)
        logits = self.runner.run(plan)
        by_request: dict[Request, list[tuple[Span, int]]] = {}
        row = 0
        for span in plan.spans:
            by_request.setdefault(span.request, []).append((span, row))
            row += span.end - span.logits_from
            self.scheduler.advance(span.request, span.sequence, span.end - len(span.guesses))
        self._consume(by_request, logits)

    def _encode(self, span: Span) -> None:
        begin = time.perf_counter()
        asked, found = self.runner.encode(span)
        self.tally.pictures += asked
        self.tally.pictures_cached += found
        if asked:
            self._sign_of_life = time.monotonic()
            span.request.clock.encoding += time.perf_counter() - begin

    def _consume(self, by_request: dict[Request, list[tuple[Span, int]]], logits: Tensor) -> None:
        """logits (M, V): each span's rows begin at the row number beside it."""
        if self._sampler is not None:
            by_request = self._draw(self._sampler, by_request, logits)
        if not by_request:
            return
        logits = logits.float()
        finite = finite_rows(logits)
        logprobs = log_probs(logits)
        for request, spans in by_request.items():
            rows = [row for span, first in spans for row in range(first, first + span.end - span.logits_from)]
            if spans[0][0].guesses:
                self._verify(request, spans[0][0], rows, logits, logprobs)
            elif not all(finite[row] for row in rows):
                self._fail_not_finite(request)
            elif request.score_from is not None:
                self._score(request, spans[0][0], logprobs[rows])
            elif not rows:
                continue
            elif request.beams is not None:
                self._search(request, logprobs[rows])
            else:
                self._generate(request, logits[rows[0]], logprobs[rows[0]])

    def _verify(
        self, request: Request, span: Span, rows: Seq[int], logits: Tensor, logprobs: Tensor
    ) -> None:  # fmt: skip
        """Draw token after token, as long as each is what was guessed."""
        for row, guess in zip(rows, (*span.guesses, None), strict=True):
            if not torch.isfinite(logits[row]).all():
                return self._fail_not_finite(request)
            self._generate(request, logits[row], logprobs[row])
            if request.finished:
                return
            self.tally.guesses += guess is not None
            if request.generated[-1] != guess:
                break
            self.tally.guesses_right += 1
        self.scheduler.advance(request, span.sequence, len(span.sequence.token_ids) - 1)
        if self._sampler is not None:
            self._sampler.release(request)  # it has missed these tokens

    def _generate(self, request: Request, logits: Tensor, logprobs: Tensor) -> None:
        params = request.params
        position = len(request.generated)
        scores = process_scores(logits, (request.bos_id, *request.generated), params, self.eos_id)
        token = choose(scores, params, request.seed, position)
        if token is None:
            return self._fail(request, NONE_ALLOWED)
        if params.logprobs:
            values, ids = logprobs.topk(min(params.logprobs, len(logprobs)))
            request.top_logprobs.append(dict(zip(ids.tolist(), values.tolist(), strict=True)))
        self._append(request, token, float(logprobs[token]))

    def _draw(
        self, sampler: DeviceSampler, by_request: dict[Request, list[tuple[Span, int]]], logits: Tensor
    ) -> dict[Request, list[tuple[Span, int]]]:
        """Move on the requests that are drawn on the device; returns the others."""
        rows = {
            request: row
            for request, [(span, row), *_] in by_request.items()
            if sampler.takes(request) and span.logits_from < span.end and not span.guesses
        }
        if rows:
            for request, (token, logprob, fault) in sampler.draw(rows, logits).items():
                if fault == ops.NOT_FINITE:
                    self._fail_not_finite(request)
                elif fault:
                    self._fail(request, NONE_ALLOWED)
                else:
                    self._append(request, token, logprob)
        return {request: spans for request, spans in by_request.items() if request not in rows}

    def _append(self, request: Request, token: int, logprob: float) -> None:
        """The answer has one token more; perhaps it was the last."""
        params = request.params
        request.clock.token()
        request.generated.append(token)
        request.logprobs.append(logprob)
        named = token in params.stop_token_ids
        text = "" if named else request.text.push(token)
        if named or (token == self.eos_id and not params.ignore_eos) or request.text.stopped:
            self._close(request, "stop", text, [token])
        elif len(request.generated) == request.max_tokens:
            self._close(request, "length", text, [token])
        else:
            request.events.append(
                Event(text, [token], logprob, None, request.index, request.last_top_logprobs)
            )
            request.sequences[0].append(token)
            if request.guesser is not None:
                request.guesser.extend([token])

    def _search(self, request: Request, logprobs: Tensor) -> None:
        """logprobs (live beams, V)."""
        search = request.beams
        assert search is not None
        request.clock.token()
        parents = search.advance(logprobs)
        if search.done:
            self._close(request, "stop" if search.best.ended else "length")
        else:
            self.scheduler.fork(request, parents, [beam.token_ids[-1] for beam in search.live])

    def _score(self, request: Request, span: Span, logprobs: Tensor) -> None:
        """Rows logits_from.. of the span tell the ids one further on; logprobs (rows, V)."""
        assert request.score_from is not None
        del request.logprobs[span.logits_from + 1 - request.score_from :]  # computed anew
        targets = request.prompt_ids[span.logits_from + 1 : span.end + 1]
        rows = torch.arange(len(targets), device=logprobs.device)
        ids = torch.tensor(targets, dtype=torch.int64, device=logprobs.device)
        request.logprobs.extend(logprobs[rows, ids].tolist())
        if span.complete:
            self._close(request, "length")

    def _fail_not_finite(self, request: Request) -> None:
        self.scheduler.distrust(request)  # nobody else is to begin with what gave such numbers
        self._fail(request, NOT_FINITE)

    def _fail(self, request: Request, message: str) -> None:
        request.error = message
        self._close(request, "error")

    def _forget(self, request: Request) -> None:
        """It does not run any more, for now or for good."""
        if self._sampler is not None:
            self._sampler.release(request)

    def _close(
        self, request: Request, reason: FinishReason, text: str = "", new_ids: Seq[int] = ()
    ) -> None:  # fmt: skip
        """End a request: free its blocks and hand out the last event."""
        self.scheduler.remove(request)
        self._forget(request)
        token_ids = list(new_ids)
        if request.beams is not None:
            beam = request.beams.best.beam
            request.generated, request.logprobs = list(beam.token_ids), list(beam.logprobs)
            token_ids = request.generated
            text = "".join([text, *map(request.text.push, token_ids)])
        text += request.text.close()
        request.finish_reason = reason
        logprob = request.logprobs[-1] if len(token_ids) == 1 else None
        top = request.last_top_logprobs if token_ids else None
        request.events.append(Event(text, token_ids, logprob, reason, request.index, top))
        request.pictures = ()
        self.tally.end(reason, request.usage, request.timings)
