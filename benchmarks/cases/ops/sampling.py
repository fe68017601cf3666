"""The next tokens of 1 and 64 rows of LLaMA's 32000 words."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.cases.ops.case import Case, Work
from owl_fast import ops

VOCABULARY, LONGEST = 32000, 2048
TEMPERATURE, TOP_K, TOP_P = 0.8, 50, 0.9


def plain_greedy(logits: Tensor) -> tuple[Tensor, Tensor]:
    tokens = logits.argmax(-1, keepdim=True)
    return tokens, logits.log_softmax(-1).gather(1, tokens)


def plain_sampling(logits: Tensor) -> tuple[Tensor, Tensor]:
    ordered, ids = torch.sort(logits / TEMPERATURE, descending=True)
    ordered = ordered.masked_fill(ordered < ordered[:, TOP_K - 1 : TOP_K], -torch.inf)
    probabilities = ordered.softmax(-1)
    left = probabilities.masked_fill(probabilities.cumsum(-1) - probabilities >= TOP_P, 0)
    tokens = ids.gather(1, torch.multinomial(left, 1))
    return tokens, logits.log_softmax(-1).gather(1, tokens)


def make(rows: int, samples: bool, penalised: bool, device: torch.device) -> Work:
    logits = torch.randn(rows, VOCABULARY, device=device) * 3
    slots = torch.arange(rows, device=device)
    state = ops.sampling_state(rows, LONGEST, device)
    chosen = ops.sampling_settings(
        temperature=TEMPERATURE if samples else 0.0,
        top_k=TOP_K,
        top_p=TOP_P,
        min_p=0.0,
        repetition_penalty=1.1 if penalised else 1.0,
        no_repeat_ngram=0,
        min_tokens=0,
        seed=1,
        presence_penalty=0.5 if penalised else 0.0,
        frequency_penalty=0.5 if penalised else 0.0,
        logit_bias=tuple((token, 1.0) for token in range(ops.MAX_BIASES if penalised else 0)),
    )
    for slot in range(rows):
        state.occupy(slot, chosen, range(1, 513))
    peer = plain_sampling if samples else plain_greedy
    return Work(
        run=lambda: ops.sample(logits, slots, state, 2),
        nbytes=logits.nbytes,
        peers={"torch sort" if samples else "torch argmax": lambda: peer(logits)} if not penalised else {},
    )


CASES = (
    Case("sample greedy", "B1-V32000", partial(make, 1, False, False), kernel_only=True),
    Case("sample top-k, top-p", "B1-V32000", partial(make, 1, True, False), kernel_only=True),
    Case("sample top-k, top-p, penalties", "B1-V32000", partial(make, 1, True, True), kernel_only=True),
    Case("sample top-k, top-p", "B64-V32000", partial(make, 64, True, False), kernel_only=True),
)
