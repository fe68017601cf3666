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
from typing import Any

ROOT = Path(__file__).parents[2]
KEPT = 4.0  # seconds for which an idle connection is kept: the server closes it after 5


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


class Client:
    """The least that HTTP takes, on a connection that is kept: what measures should not need the cores."""

    def __init__(self, host: str, port: int, address: str) -> None:
        self._host, self._port, self._address = host, port, address
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, asked: object) -> tuple[int, dict[str, str], Any]:
        """(status, headers, JSON) of a reply with a Content-Length."""
        if self._streams is None:
            source = (self._address, 0)
            self._streams = await asyncio.open_connection(self._host, self._port, local_addr=source)
        reader, writer = self._streams
        body = json.dumps(asked).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        content = await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            self.close()
        return int(lines[0].split()[1]), headers, json.loads(content)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def closed_loop(url: str, clients: int, seconds: float) -> Load:
    """Each client has an address of its own and asks again once it is answered, or, refused, a little later
    than it was told."""
    load, end = Load({}, [0] * clients, []), time.monotonic() + seconds
    statuses: Counter[str] = Counter()
    host, port = url.removeprefix("http://").split(":")

    async def run(number: int) -> None:
        rng = random.Random(number)
        client = Client(host, int(port), f"127.0.{1 + number // 200}.{1 + number % 200}")
        while time.monotonic() < end:
            content = f"Tell {number} {rng.random()}"
            asked = {"model": "owl-nano", "messages": [{"role": "user", "content": content}]}
            asked |= {"temperature": 0, "max_tokens": rng.randint(8, 24), "ignore_eos": True}
            begin = time.monotonic()
            try:
                status, headers, reply = await client.post("/v1/chat/completions", asked)
            except (OSError, EOFError) as error:
                statuses[type(error).__name__] += 1
                client.close()
                continue
            statuses[str(status)] += 1
            if status == 200:
                load.seconds.append(time.monotonic() - begin)
                load.tokens[number] += reply["usage"]["completion_tokens"]
            else:
                pause = float(headers["retry-after"]) * rng.uniform(1.0, 1.5)
                if pause > KEPT:
                    client.close()
                await asyncio.sleep(pause)
        client.close()

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
