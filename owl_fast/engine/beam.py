"""Beam search for one request, with the rules of transformers 4.28.

Each step every live beam offers its tokens; the 2 * width best (beam, token) pairs are looked at in order:
pairs that end the answer become hypotheses if they are among the first `width`, the others refill the live
beams. A hypothesis scores log-prob / (1 + tokens before the end) ** length_penalty: the leading BOS counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from owl_fast.engine.sampling import SamplingParams, process_scores


@dataclass(frozen=True)
class Beam:
    """Generated ids, their raw log-probs, and the sum of the processed ones (penalties included)."""

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    total: float = 0.0

    def extend(self, token: int, logprob: float, total: float) -> Beam:
        return Beam((*self.token_ids, token), (*self.logprobs, logprob), total)


@dataclass(frozen=True)
class Hypothesis:
    score: float
    beam: Beam
    ended: bool


class BeamSearch:
    """Live beams and finished hypotheses; `advance` takes one step's log-probs, `best` gives the answer."""

    def __init__(self, params: SamplingParams, bos_id: int, eos_id: int, max_tokens: int) -> None:
        self.params = params
        self.live = [Beam()]
        self.done = False
        self._bos_id, self._eos_id = bos_id, eos_id
        self._max_tokens = max_tokens
        self._finished: list[Hypothesis] = []

    def advance(self, logprobs: Tensor) -> list[int]:
        """Take (live beams, V) float32 log-probs; returns for each new live beam which one it extends.

        Sets `done` when the search has ended; the new beams then need no further step.
        """
        pairs = self._candidates(logprobs)
        before = self.live
        length = 1 + len(before[0].token_ids)
        self.live, parents = [], []
        for rank, (total, parent, token) in enumerate(pairs):
            beam = before[parent].extend(token, float(logprobs[parent, token]), total)
            if token == self._eos_id and not self.params.ignore_eos:
                if rank < self.params.beams:
                    self._add(Hypothesis(self._score(total, length), beam, ended=True))
            else:
                self.live.append(beam)
                parents.append(parent)
                if len(self.live) == self.params.beams:
                    break
        if self._is_done(pairs[0][0], length):
            self.done = True
        elif len(before[0].token_ids) + 1 >= self._max_tokens:
            self.done = True
            for beam in self.live:
                self._add(Hypothesis(self._score(beam.total, length + 1), beam, ended=False))
        return parents

    @property
    def best(self) -> Hypothesis:
        """The best finished hypothesis, or before the end the best live beam."""
        if self._finished:
            # Of equals the later one, as a stable sort followed by taking the last.
            return max(reversed(self._finished), key=lambda hypothesis: hypothesis.score)
        beam = max(self.live, key=lambda beam: beam.total)
        return Hypothesis(self._score(beam.total, 1 + len(beam.token_ids)), beam, ended=False)

    def _score(self, total: float, length: int) -> float:
        return total / length**self.params.length_penalty

    def _candidates(self, logprobs: Tensor) -> list[tuple[float, int, int]]:
        """The 2 * width best (total, beam, token), best first."""
        rows = [
            process_scores(row, (self._bos_id, *beam.token_ids), self.params, self._eos_id) + beam.total
            for row, beam in zip(logprobs, self.live, strict=True)
        ]
        totals = torch.stack(rows)
        vocab = totals.shape[1]
        values, flat = totals.flatten().topk(min(2 * self.params.beams, totals.numel()))
        return [
            (value, index // vocab, index % vocab)
            for value, index in zip(values.tolist(), flat.tolist(), strict=True)
        ]

    def _add(self, hypothesis: Hypothesis) -> None:
        if len(self._finished) == self.params.beams:
            worst = min(self._finished, key=lambda other: other.score)
            if hypothesis.score <= worst.score:
                return
            self._finished.remove(worst)
        self._finished.append(hypothesis)

    def _is_done(self, best_total: float, length: int) -> bool:
        if len(self._finished) < self.params.beams:
            return False
        worst = min(hypothesis.score for hypothesis in self._finished)
        return self.params.early_stopping or worst >= self._score(best_total, length)
