"""Requests whose tokens are drawn on the device get those of the host, whoever runs beside them."""

from __future__ import annotations

from typing import Any

import torch

from owl_fast.engine.device_sampler import DeviceSampler
from owl_fast.engine.loop import Loop
from owl_fast.engine.sampling import SamplingParams
from tests.engine.fakes import BOS, EOS, VOCAB, expected, make_loop, make_request, run_to_end

TOKENS = 6
OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.2, "seed": 5},
    {"presence_penalty": 1.5, "frequency_penalty": 0.7},
    {"temperature": 0.9, "frequency_penalty": -1.0, "seed": 2},
    {"logit_bias": {4: 100, EOS: -100}},
    {"temperature": 1.0, "logit_bias": {token: token / 9 for token in range(VOCAB)}, "seed": 8},
    {
        "temperature": 1.5,
        "seed": 3,
        "repetition_penalty": 1.4,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.4,
        "logit_bias": {6: 2.5, 7: -3},
        "no_repeat_ngram": 2,
        "min_p": 0.05,
        "min_tokens": 4,
        "stop": ("zzz", "jj"),
    },
    {"logprobs": 3, "presence_penalty": 2.0, "logit_bias": {9: 1.0}},  # alternatives: on the host
]


def loop_on(device: torch.device, **options: int) -> tuple[Loop, DeviceSampler]:
    loop = make_loop(**options)
    sampler = DeviceSampler(loop.scheduler.max_batch, 64, EOS, device)
    loop._sampler = sampler
    return loop, sampler


def test_the_same_tokens_as_from_the_host(device: torch.device) -> None:
    """With so little room that some give way and draw on in another slot."""
    loop, sampler = loop_on(device, num_blocks=8, max_batch=4)
    requests = [
        make_request([BOS, 5, 6, number], SamplingParams(max_tokens=TOKENS, **options))
        for number, options in enumerate(OPTIONS)
    ]
    for request in requests:
        loop.submit(request)
    run_to_end(loop, *requests)
    assert loop.tally.preemptions > 0
    for request in requests:
        wanted = expected(request)
        assert request.generated == wanted[: len(request.generated)]
        assert len(request.generated) == len(wanted) or request.text.stopped
    assert sorted(sampler._free) == [0, 1, 2, 3]
