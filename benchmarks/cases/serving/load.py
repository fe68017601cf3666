"""One server under one load: what its clients saw."""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.cases.serving import client
from benchmarks.cases.serving.asked import Asker, Size, arrivals, path_of
from benchmarks.cases.serving.client import ANSWERED, Outcome, Plan
from benchmarks.cases.serving.servers import HOST, Server
from owl_fast.errors import OwlError

PERCENTILES = 50, 90, 99
PATIENCE = 120.0  # seconds for a request that does not count


class Load(NamedTuple):
    """Either so many requests a second, or so many clients that wait for their answers."""

    offered: float | None = None
    clients: int = 0

    def __str__(self) -> str:
        if self.offered is not None:
            return f"{self.offered:g} requests/s"
        return "1 client" if self.clients == 1 else f"{self.clients} clients"


@dataclass(frozen=True)
class Seen:
    """seconds: for which the load lasted; tokens: of each answer; processor: seconds that the load generator
    took."""

    outcomes: list[Outcome]
    seconds: float
    tokens: int
    processor: float

    @cached_property
    def answered(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.result == ANSWERED]

    @cached_property
    def counts(self) -> Counter[str]:
        """Of each result."""
        return Counter(outcome.result for outcome in self.outcomes)

    @property
    def span(self) -> float:
        """Seconds until the last request had ended, or the load, if that was later."""
        return max([self.seconds, *(outcome.end for outcome in self.outcomes)])

    @property
    def rate(self) -> float:
        """Requests/s that were answered."""
        return len(self.answered) / self.span

    @property
    def late(self) -> float:
        """Seconds by which the generator was late at the most."""
        return max((outcome.sent - outcome.due for outcome in self.outcomes), default=0.0)

    @cached_property
    def first(self) -> list[float]:
        """Seconds to the first text of each answer, from when its request was due."""
        return sorted(outcome.moments[0] - outcome.due for outcome in self.answered if outcome.moments)

    @cached_property
    def between(self) -> list[float]:
        """Seconds between pieces of text, of all answers together."""
        return sorted(b - a for outcome in self.answered for a, b in pairwise(outcome.moments))

    @cached_property
    def each(self) -> list[float]:
        """Seconds between pieces of text in the mean of each answer: pieces may come in clusters."""
        pieces = (outcome.moments for outcome in self.answered)
        return sorted((moments[-1] - moments[0]) / (len(moments) - 1) for moments in pieces if moments[1:])

    @property
    def why(self) -> str:
        """What servers said most often to requests that were not answered."""
        said = Counter(outcome.detail for outcome in self.outcomes if outcome.detail)
        return "; ".join(f"{count} x {detail}" for detail, count in said.most_common(2))


def percentile(values: list[float], percent: int) -> float:
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def measure(server: Server, kind: str, load: Load, asker: Asker, size: Size) -> Seen:
    """Behind a request that does not count: once it is answered, the server has nothing left to do.

    OwlError when it does not answer that one.
    """
    (alone,), _ = _run(server, kind, asker, 1, PATIENCE, arrivals=[0.0])
    if alone.result != ANSWERED:
        raise OwlError(f"the server does not answer a lone request: {alone.detail}")
    if load.offered is None:
        most = round(size.most * size.seconds)
        found = _run(server, kind, asker, most, size.patience, clients=load.clients, seconds=size.seconds)
    else:
        count = max(1, round(load.offered * size.seconds))
        found = _run(
            server, kind, asker, count, size.patience, arrivals=arrivals(count, size.seconds, seed=0)
        )
    outcomes, processor = found
    return Seen(outcomes, size.seconds, size.answer, processor)


def _run(
    server: Server, kind: str, asker: Asker, count: int, patience: float, **loop: Any
) -> tuple[list[Outcome], float]:
    """What became of so many requests (of fewer in a closed loop), and the seconds of a processor it took to
    send them."""
    bodies = asker.bodies(kind, count, server.model, server.extras)
    plan = Plan(HOST, server.port, path_of(kind), bodies, patience, **loop)
    command = [sys.executable, str(Path(client.__file__))]
    sent = json.dumps(dataclasses.asdict(plan))
    done = subprocess.run(command, input=sent, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    return [Outcome(**outcome) for outcome in found["outcomes"]], found["processor"]
