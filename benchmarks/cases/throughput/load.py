"""What is asked at once, and how contenders that answer it are measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch

from benchmarks.steps import StartOf, StepsOf, T, TakenOf, alone, in_turns
from benchmarks.timing import pause
from owl_fast.engine.engine import Engine
from owl_fast.engine.inputs import PreparedPrompt
from owl_fast.engine.sampling import SamplingParams
from owl_fast.errors import OwlError

FIRST_ID = 3  # the ids before it are special
WARM = 16, 4  # positions and tokens of what a CPU is warmed up with; a GPU computes as much as it will later

Prompts = list[list[int]]


class Times(NamedTuple):
    """Seconds until every answer had begun, the seconds after that, and the tokens that came in those."""

    first: float
    rest: float
    tokens: int

    @property
    def whole(self) -> float:
        return self.first + self.rest


Answer = Callable[[Prompts, int], Times]  # prompts, tokens of each answer


class Load(NamedTuple):
    """So many requests at once, of so many positions each, for answers of so many tokens; `rounds` times."""

    answers: int
    context: int
    tokens: int
    rounds: int

    def prompts(self, turn: int, vocabulary: int, bos: int) -> Prompts:
        """Random ids behind a first one that no other prompt has, of this turn or of those before."""
        generator = torch.Generator().manual_seed(turn)
        random = torch.randint(FIRST_ID, vocabulary, (self.answers, self.context - 2), generator=generator)
        own = range(turn * self.answers, (turn + 1) * self.answers)
        firsts = [FIRST_ID + index % (vocabulary - FIRST_ID) for index in own]
        return [[bos, first, *row] for first, row in zip(firsts, random.tolist(), strict=True)]


def steps(
    answering: Callable[[], AbstractContextManager[Answer]],
    load: Load,
    vocabulary: int,
    bos: int,
    device: torch.device,
) -> StepsOf[Times]:
    """Of each round, behind one to warm up."""
    warm = load
    if device.type == "cpu":
        context, tokens = WARM
        warm = load._replace(context=min(context, load.context), tokens=min(tokens, load.tokens))
    with answering() as answer:
        for turn, asked in enumerate([warm] + [load] * load.rounds):
            yield answer(asked.prompts(turn, vocabulary, bos), asked.tokens)


def measured(starts: Mapping[str, StartOf[T]], device: torch.device) -> TakenOf[T]:
    """What each round but the first took: on a CPU in turns, on a GPU each with the memory to itself."""
    if device.type == "cpu":
        return in_turns(starts, pause(device))
    taken = alone(starts, device)
    return {name: found if isinstance(found, str) else found[1:] for name, found in taken.items()}


def times_of(asked: Engine, prompts: Sequence[PreparedPrompt], tokens: int) -> Times:
    """From the call to the last of the answers, greedy ones that do not end before; past the engine's front
    door, behind which prompts are ids. OwlError when one fails."""
    params = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    start = time.perf_counter()
    requests = [request for prompt in prompts for request in asked._make(prompt, params)]
    for request in requests:
        asked._loop.submit(request)
    while any(not (request.generated or request.finished) for request in requests):
        asked._loop.step()
    begun, given = time.perf_counter(), sum(len(request.generated) for request in requests)
    while not all(request.finished for request in requests):
        asked._loop.step()
    end = time.perf_counter()
    for request in requests:
        if request.error:
            raise OwlError(request.error)
    return Times(begun - start, end - begun, len(requests) * tokens - given)
