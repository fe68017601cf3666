"""An answer's bits never depend on what else runs, nor on how it is computed: on a CPU with libowl_cpu, on a
GPU with exact=True.

Sixty-four prompts, of text, with one picture and with four, 64 tokens each, half of them sampled: alone, and
in all the ways below.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from PIL import Image

from owl_fast import Engine, ops
from owl_fast.engine.outputs import Output

COUNT, TOKENS = 64, 64
WAYS: dict[str, dict[str, Any]] = {
    "batches of 2": {"max_batch": 2},
    "batches of 8": {"max_batch": 8},
    "batches of 32": {"max_batch": 32},
    "prompts in chunks": {"max_batch": 8, "step_tokens": 24},
    "nothing is kept": {"max_batch": 8, "prefix_cache": False, "picture_cache_mb": 0},
    "memory runs short": {"max_batch": 32, "cache_positions": 1024},
    "answers are guessed": {"max_batch": 4, "speculation": 12},
    "all at once": {"max_batch": 16, "step_tokens": 50, "cache_positions": 1200, "speculation": 24},
}
QUICK = ("batches of 8", "all at once")

with_libowl_cpu = pytest.mark.skipif(
    ops.backend(torch.device("cpu")) != "libowl_cpu",
    reason="on a CPU bits are promised with it alone",
)
Kind = tuple[str, str, str | None]  # device, dtype, quant


def picture(rng: random.Random) -> Image.Image:
    """Blocks of colour."""
    small = Image.frombytes("RGB", (4, 4), rng.randbytes(48))
    return small.resize((112, 112), Image.Resampling.NEAREST)


def requests() -> list[dict[str, Any]]:
    """Several ask about the same pictures, and some ask the same."""
    rng = random.Random(7)
    pictures = [picture(rng) for _ in range(6)]
    questions = ("What color is the star?", "Describe the picture.", "How many shapes are there?", "Hi.")
    made = []
    for index in range(COUNT):
        shown = [rng.choice(pictures) for _ in range((0, 1, 1, 4)[index % 4])]
        parts = [{"type": "image", "image": each} for each in shown]
        text = {"type": "text", "text": rng.choice(questions) * rng.randint(1, 4)}
        made.append({"messages": [{"role": "user", "content": [*parts, text]}]})
    return made


def ask(engine: Engine, index: int, request: dict[str, Any]) -> Any:
    options = {"temperature": 0.9, "top_p": 0.95, "seed": index} if index % 2 else {}
    client = f"client {index % 3}"
    return engine.stream(
        request["messages"], max_tokens=TOKENS, ignore_eos=True, logprobs=2, client=client, **options
    )


def told(output: Output) -> tuple[list[int], list[float], list[dict[int, float]] | None]:
    return output.token_ids, output.logprobs, output.top_logprobs


def opened(device: str, dtype: str, quant: str | None, **options: Any) -> Engine:
    model = Engine.from_pretrained(device=device, dtype=dtype, quant=quant)
    return Engine(model.model, model.tokenizer, model.processor, max_context=512, exact=True, **options)


def answers(engine: Engine, order: list[int]) -> dict[int, Output]:
    """All asked at once, in this order, and read to their ends by turns."""
    asked = requests()
    streams = {index: ask(engine, index, asked[index]) for index in order}
    waiting: dict[int, Iterator[Any]] = {index: iter(stream) for index, stream in streams.items()}
    while waiting:
        for index in list(waiting):
            if next(waiting[index], None) is None:
                del waiting[index]
    return {index: stream.output for index, stream in streams.items()}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("cpu", "fp32", None), marks=with_libowl_cpu),
        pytest.param(("cpu", "bf16", "int4"), marks=[with_libowl_cpu, pytest.mark.slow]),
        pytest.param(("cuda", "bf16", None), marks=pytest.mark.gpu),
        pytest.param(("cuda", "bf16", "int4"), marks=pytest.mark.gpu),
    ],
    ids=lambda kind: f"{kind[0]}-{kind[2] or kind[1]}",
)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture(scope="module")
def alone(kind: Kind) -> dict[int, Output]:
    engine = opened(*kind, max_batch=1, prefix_cache=False, picture_cache_mb=0)
    found = {}
    for index, request in enumerate(requests()):
        stream = ask(engine, index, request)
        for _ in stream:
            pass
        found[index] = stream.output
    return found


@pytest.mark.parametrize(
    "way", [way if way in QUICK else pytest.param(way, marks=pytest.mark.slow) for way in WAYS]
)
def test_answers_are_the_same_to_the_bit(way: str, kind: Kind, alone: dict[int, Output]) -> None:
    engine = opened(*kind, **WAYS[way])
    order = list(range(COUNT))
    for shuffle in range(2):  # the second time much of it is in the caches
        random.Random(shuffle).shuffle(order)
        for index, output in answers(engine, order).items():
            assert told(output) == told(alone[index]), f"request {index}"
    stats = engine.stats()
    assert (stats.preemptions > 0) >= ("cache_positions" in WAYS[way])
    assert (stats.guesses_right > 0) == ("speculation" in WAYS[way])
