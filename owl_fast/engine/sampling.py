"""How the next token is chosen from a row of logits.

    V  vocabulary    history  [BOS] + ids generated so far (never the prompt: model-spec section 7)

Order of the steps, as far as transformers 4.28 has them its own:

    1  repetition penalty             of what is in the history
    2  presence, frequency penalty    score - frequency * count - presence * (count > 0), count: how often it
                                      was generated (the formula of OpenAI's API)
    3  logit bias                     score + bias
    4  no-repeat n-gram, min_tokens   score = -inf: of what would repeat, of what would end the answer
    5  when sampling                  temperature, top-k, top-p, min-p, the draw

Beams take steps 1 to 4 on their log-probs, and the sum of what these gave is a beam's. A draw is a pure
function of (seed, position).
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from torch import Tensor

from owl_fast import ops
from owl_fast.errors import ParameterError, UnsupportedError

MAX_LOGPROBS = 20
MAX_ANSWERS = 16
MAX_PENALTY, MAX_BIAS = 2, 100  # either way, as in OpenAI's API
MANY_ROWS = 64  # of logits: worth all of torch's threads
_INT64 = range(-(1 << 63), 1 << 63)


@dataclass(frozen=True)
class SamplingParams:
    """What a request asks of generation. The defaults give the greedy answer.

    max_tokens         tokens to generate at most; None: what the context leaves
    temperature        0 takes the likeliest token; above 0 samples
    top_k              keep the k likeliest; 0 keeps all
    top_p              keep the likeliest until they sum to p; 1 keeps all
    min_p              keep those at least min_p times as likely as the likeliest; 0 keeps all
    repetition_penalty divides positive and multiplies negative scores of tokens already generated
    presence_penalty   taken off the score of tokens already generated, -2 to 2
    frequency_penalty  the same for each time they were generated, -2 to 2
    logit_bias         {token id: number added to its score}, -100 to 100 for up to 300 ids; kept as pairs
    no_repeat_ngram    no n-gram of this length comes twice; 0 switches it off
    beams              beam search of this width
    length_penalty     beams: score = log-prob / length ** length_penalty
    early_stopping     beams: end when `beams` answers are complete
    seed               of the draws; None takes a fresh one
    n                  answers, up to 16; the first one is that of n=1, the others have seeds of their own
    stop               strings that end the answer and are not part of it
    stop_token_ids     ids that end the answer and are not part of its text
    ignore_eos         go on past the end token
    min_tokens         no end token, and none of stop_token_ids, before this many tokens
    logprobs           alternatives reported per token, up to 20; the chosen token's own is always reported
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    no_repeat_ngram: int = 0
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False
    seed: int | None = None
    n: int = 1
    stop: str | tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int = 0

    def __post_init__(self) -> None:
        """ParameterError for a value out of range, UnsupportedError for a pair that does not go together."""
        stop = self.stop_strings
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "logit_bias", _pairs(self.logit_bias))
        object.__setattr__(self, "stop_token_ids", _ids(self.stop_token_ids))
        for field in fields(self):
            if field.name not in ("stop", "stop_token_ids", "logit_bias"):
                _check_type(field.name, getattr(self, field.name), str(field.type))
        for name, ok, wanted in (
            ("max_tokens", self.max_tokens is None or self.max_tokens >= 1, "at least 1, or None"),
            ("temperature", self.temperature >= 0, "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1 (off)"),
            ("min_p", 0 <= self.min_p < 1, "0 (off) or more, below 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0; 1 is off"),
            ("presence_penalty", abs(self.presence_penalty) <= MAX_PENALTY, "-2 to 2; 0 is off"),
            ("frequency_penalty", abs(self.frequency_penalty) <= MAX_PENALTY, "-2 to 2; 0 is off"),
            ("no_repeat_ngram", self.no_repeat_ngram >= 0, "0 (off) or more"),
            ("beams", self.beams >= 1, "1 (off) or more"),
            ("seed", self.seed is None or self.seed in _INT64, "a 64-bit integer or None"),
            ("n", 1 <= self.n <= MAX_ANSWERS, f"1 to {MAX_ANSWERS}"),
            ("stop", all(stop), "no empty string"),
            ("min_tokens", self.min_tokens >= 0, "0 or more"),
            (
                "min_tokens",
                self.max_tokens is None or self.min_tokens <= self.max_tokens,
                "at most max_tokens",
            ),
            ("logprobs", 0 <= self.logprobs <= MAX_LOGPROBS, f"0 to {MAX_LOGPROBS}"),
        ):
            if not ok:
                raise ParameterError(f"{name} is {getattr(self, name)!r:.80}; wanted {wanted}")
        if self.beams > 1:
            self._check_beams()

    def changed(self, options: Mapping[str, Any]) -> SamplingParams:
        """With some fields replaced; ParameterError for a name that is none of them."""
        names = [field.name for field in fields(self)]
        for name in options.keys() - set(names):
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]}?" if close else f"wanted one of {', '.join(names)}"
            raise ParameterError(f"no option {name!r:.60}; {hint}")
        return replace(self, **options)

    def _check_beams(self) -> None:
        for name, is_set in (
            ("temperature", self.temperature > 0),
            ("stop", bool(self.stop)),
            ("stop_token_ids", bool(self.stop_token_ids)),
            ("logprobs", self.logprobs > 0),
            ("n", self.n > 1),
        ):
            if is_set:
                raise UnsupportedError(
                    f"beams={self.beams} with {name}={getattr(self, name)!r:.80}: beam search is greedy, "
                    f"ends at the end token and gives one answer; leave {name} out or set beams=1"
                )

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, whatever was given."""
        parts = [self.stop] if isinstance(self.stop, str) else self.stop
        if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
            raise ParameterError(f"stop is {self.stop!r:.80}; wanted a string or several")
        return tuple(parts)

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """`logit_bias` as it is kept: pairs of an id and its bias in the order of ids."""
        assert isinstance(self.logit_bias, tuple)
        return self.logit_bias


def _pairs(given: object) -> tuple[tuple[int, float], ...]:
    """A logit_bias as it is kept; ParameterError."""
    pairs = list(given.items()) if isinstance(given, Mapping) else given
    if not isinstance(pairs, (list, tuple)) or not all(
        isinstance(pair, tuple) and len(pair) == 2 for pair in pairs
    ):
        raise ParameterError(f"logit_bias is {given!r:.80}; wanted {{token id: bias}}")
    if len(pairs) > ops.MAX_BIASES:
        raise ParameterError(f"logit_bias has {len(pairs)} ids; wanted at most {ops.MAX_BIASES}")
    for token, bias in pairs:
        _check_type("an id of logit_bias", token, "int")
        _check_type(f"logit_bias of token {token}", bias, "float")
        if token < 0:
            raise ParameterError(f"an id of logit_bias is {token}; wanted 0 or more")
        if abs(bias) > MAX_BIAS:
            raise ParameterError(
                f"logit_bias of token {token} is {bias!r:.40}; wanted -{MAX_BIAS} to {MAX_BIAS}"
            )
    if len({token for token, _ in pairs}) < len(pairs):
        raise ParameterError(f"logit_bias is {given!r:.80}; wanted each token once")
    return tuple(sorted((token, float(bias)) for token, bias in pairs))


def _ids(given: object) -> tuple[int, ...]:
    """stop_token_ids as they are kept; ParameterError."""
    if not isinstance(given, (list, tuple)):
        raise ParameterError(f"stop_token_ids is {given!r:.80}; wanted ids of tokens")
    for token in given:
        _check_type("an id of stop_token_ids", token, "int")
        if token < 0:
            raise ParameterError(f"an id of stop_token_ids is {token}; wanted 0 or more")
    return tuple(given)


def _check_type(name: str, value: object, kind: str) -> None:
    if kind == "bool":
        ok = isinstance(value, bool)
    elif value is None:
        ok = "None" in kind
    else:
        allowed = (int, float) if kind == "float" else (int,)
        ok = isinstance(value, allowed) and not isinstance(value, bool) and math.isfinite(value)
    if not ok:
        raise ParameterError(f"{name} is {value!r:.80}; wanted {kind}")


# For several rows torch wakes its threads, which takes longer than the work while libowl_cpu's wait for the
# next step: on a CPU one row after another.


def finite_rows(logits: Tensor) -> list[bool]:
    """Whether every logit is, of each row (M, V)."""
    if logits.is_cpu and 0 < len(logits) < MANY_ROWS:
        return [bool(np.isfinite(row).all()) for row in logits.numpy()]
    found: list[bool] = torch.isfinite(logits).all(-1).tolist()
    return found


def log_probs(logits: Tensor) -> Tensor:
    """Of each row (M, V) of logits."""
    if logits.is_cpu and 0 < len(logits) < MANY_ROWS:
        return torch.stack([torch.log_softmax(row, -1) for row in logits])
    return torch.log_softmax(logits, -1)


def process_scores(scores: Tensor, history: Seq[int], params: SamplingParams, eos_id: int) -> Tensor:
    """Penalties on one row of scores (V,) given the history; returns the row itself when none applies."""
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(history)), device=scores.device)
        before = scores[seen]
        penalty = params.repetition_penalty
        scores = scores.index_copy(0, seen, torch.where(before < 0, before * penalty, before / penalty))
    if params.presence_penalty or params.frequency_penalty:
        counts = Counter(history[1:])
        charged = ops.charges(counts.values(), device_settings(params, 0))
        scores = _add(scores, list(counts), -charged)
    if params.biases:
        ids, biases = zip(*params.biases, strict=True)
        scores = _add(scores, ids, torch.tensor(biases))
    banned = repeated_ngram_ends(history, params.no_repeat_ngram)
    if len(history) - 1 < params.min_tokens:
        banned.update((eos_id, *params.stop_token_ids))
    if banned:
        scores = scores.index_fill(0, torch.tensor(sorted(banned), device=scores.device), -math.inf)
    return scores


def _add(scores: Tensor, ids: Seq[int], amounts: Tensor) -> Tensor:
    """ids: no two the same."""
    at = torch.tensor(ids, dtype=torch.int64, device=scores.device)
    return scores.index_add(0, at, amounts.to(scores.device))


def repeated_ngram_ends(history: Seq[int], size: int) -> set[int]:
    """Tokens that would complete an n-gram of this size already in the history."""
    if size == 0 or len(history) + 1 < size:
        return set()
    prefix = tuple(history[len(history) - size + 1 :])
    ends = range(size - 1, len(history))
    return {history[end] for end in ends if tuple(history[end - size + 1 : end]) == prefix}


def device_settings(params: SamplingParams, seed: int) -> ops.SamplingSettings:
    """The same request in the numbers that every device computes with."""
    return ops.sampling_settings(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        no_repeat_ngram=params.no_repeat_ngram,
        min_tokens=params.min_tokens,
        seed=seed,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=params.biases,
    )


def seed_of(seed: int, answer: int) -> int:
    """The seed of an answer among several to one prompt; the first one has the prompt's."""
    if answer == 0:
        return seed
    return int.from_bytes(sha256(f"{seed} {answer}".encode()).digest()[:8], "little", signed=True)


def choose(scores: Tensor, params: SamplingParams, seed: int, position: int) -> int | None:
    """The next token of one processed row (V,); None when every token is forbidden."""
    best = int(scores.argmax())
    if not math.isfinite(float(scores[best])):
        return None
    if params.temperature == 0:
        return best
    return ops.draw(scores, device_settings(params, seed), position)
