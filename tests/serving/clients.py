"""Closed-loop clients in a process of their own, so that they do not share the server's interpreter.

As a program, `python -m tests.serving.clients URL CLIENTS SECONDS`: prints what happened as JSON.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0


@dataclasses.dataclass
class Load:
    """What happened. tokens: of each client; seconds: of each answered request."""

    statuses: dict[str, int]
    tokens: list[int]
    seconds: list[float]

    @property
    def jain(self) -> float:
        """1: all got the same, 1/n: one got all."""
        return sum(self.tokens) ** 2 / (len(self.tokens) * sum(value * value for value in self.tokens))

    def percentile(self, share: float) -> float:
        return sorted(self.seconds)[int(share * (len(self.seconds) - 1))]


async def closed_loop(url: str, clients: int, seconds: float) -> Load:
    """Each client has an address of its own and asks again once it is answered, or, refused, a little later
    than it was told."""
    load, end = Load({}, [0] * clients, []), time.monotonic() + seconds
    statuses: Counter[str] = Counter()

    async def run(number: int) -> None:
        rng = random.Random(number)
        address = f"127.0.{1 + number // 200}.{1 + number % 200}"
        transport = httpx.AsyncHTTPTransport(verify=False, local_address=address)  # no certificates to read
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, transport=transport) as client:
            while time.monotonic() < end:
                content = f"Tell {number} {rng.random()}"
                asked = {"model": "owl-nano", "messages": [{"role": "user", "content": content}]}
                asked |= {"temperature": 0, "max_tokens": rng.randint(8, 24), "ignore_eos": True}
                begin = time.monotonic()
                try:
                    reply = await client.post("/v1/chat/completions", json=asked)
                except httpx.TransportError as error:
                    statuses[type(error).__name__] += 1
                    continue
                statuses[str(reply.status_code)] += 1
                if reply.status_code == 200:
                    load.seconds.append(time.monotonic() - begin)
                    load.tokens[number] += reply.json()["usage"]["completion_tokens"]
                else:
                    await asyncio.sleep(float(reply.headers["retry-after"]) * rng.uniform(1.0, 1.5))

    await asyncio.gather(*(run(number) for number in range(clients)))
    load.statuses = dict(statuses)
    return load


def load_of(url: str, clients: int, seconds: float) -> Load:
    """The same in another process."""
    command = [sys.executable, "-m", "tests.serving.clients", url, str(clients), str(seconds)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return Load(**json.loads(done.stdout))


if __name__ == "__main__":
    url, clients, seconds = sys.argv[1:]
    print(json.dumps(dataclasses.asdict(asyncio.run(closed_loop(url, int(clients), float(seconds))))))
