"""The load generator, a process of its own: python client.py < plan.json > outcomes.json

It needs the standard library alone, so it starts in a moment and takes as little of the machine as it can.
Every request has a connection of its own. Times are seconds from the beginning of the load.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass, field

ANSWERED, REFUSED, FAILED, UNFINISHED = "answered", "refused", "failed", "unfinished"
BUSY = 429, 503  # statuses of a server that has no place


@dataclass(frozen=True)
class Plan:
    """bodies: JSON texts, one for each request. Open loop: arrivals, when each of them is sent, whatever
    became of the others. Closed loop: so many clients, each of which sends the next one as soon as its last
    one has ended, for so many seconds or until there is none left. patience: after so many seconds from when
    it was due a request is given up."""

    host: str
    port: int
    path: str
    bodies: list[str]
    patience: float
    arrivals: list[float] | None = None
    clients: int = 1
    seconds: float = 0.0


@dataclass
class Outcome:
    """due: when it was to be sent; sent: when it was. moments: when pieces of text came. end: when nothing
    more was waited for. result: one of the four above, with what a server said in detail."""

    due: float
    sent: float = 0.0
    moments: list[float] = field(default_factory=list)
    end: float = 0.0
    result: str = FAILED
    detail: str = ""


class Client:
    """Sends what a plan says."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._start = plan, time.perf_counter()

    async def run(self) -> list[Outcome]:
        plan = self._plan
        if plan.arrivals is not None:
            sent = (self._at(due, body) for due, body in zip(plan.arrivals, plan.bodies, strict=True))
            return list(await asyncio.gather(*sent))
        bodies = iter(plan.bodies)
        ended = await asyncio.gather(*(self._one_after_another(bodies) for _ in range(plan.clients)))
        return [outcome for outcomes in ended for outcome in outcomes]

    def _now(self) -> float:
        return time.perf_counter() - self._start

    async def _at(self, due: float, body: str) -> Outcome:
        await asyncio.sleep(due - self._now())
        return await self._ask(due, body)

    async def _one_after_another(self, bodies: Iterator[str]) -> list[Outcome]:
        outcomes = []
        while (now := self._now()) < self._plan.seconds and (body := next(bodies, None)) is not None:
            outcomes.append(await self._ask(now, body))
        return outcomes

    async def _ask(self, due: float, body: str) -> Outcome:
        outcome = Outcome(due, sent=self._now())
        try:
            left = due + self._plan.patience - self._now()
            await asyncio.wait_for(self._answer(body.encode(), outcome), left)
        except asyncio.TimeoutError:
            outcome.result, outcome.detail = UNFINISHED, f"given up after {self._plan.patience:g} s"
        except (OSError, EOFError, ValueError, LookupError, TypeError) as error:
            outcome.detail = f"{type(error).__name__}: {error}"[:160]
        outcome.end = self._now()
        return outcome

    async def _answer(self, body: bytes, outcome: Outcome) -> None:
        plan = self._plan
        reader, writer = await asyncio.open_connection(plan.host, plan.port)
        try:
            head = f"POST {plan.path} HTTP/1.1\r\nHost: {plan.host}:{plan.port}\r\nConnection: close\r\n"
            kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write((head + kind).encode() + body)
            await writer.drain()
            status = int((await reader.readline()).split()[1])
            if status == 200:
                await self._read(reader, outcome)
            else:
                outcome.result, outcome.detail = REFUSED if status in BUSY else FAILED, f"status {status}"
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader, outcome: Outcome) -> None:
        """The stream to its end: an answer has to be as long as asked, and to be ended by the server."""
        finish = None
        async for data in _events(reader):
            if data == b"[DONE]":
                outcome.result = ANSWERED if finish == "length" else FAILED
                outcome.detail = "" if finish == "length" else f"finish_reason {finish}"
                return
            event = json.loads(data)
            if "error" in event:
                raise ValueError(f"an error within the stream: {event['error']}")
            for choice in event["choices"]:  # none where the usage is
                if choice.get("text") or choice.get("delta", {}).get("content"):
                    outcome.moments.append(self._now())
                finish = choice.get("finish_reason") or finish
        outcome.detail = "the stream ended early"


async def _events(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The data of server-sent events of one line."""
    chunked = False
    while (line := (await reader.readline()).strip().lower()) != b"":
        chunked |= line == b"transfer-encoding: chunked"
    rest = b""
    async for part in _chunks(reader) if chunked else _parts(reader):
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int(await reader.readuntil(b"\n"), 16):
        yield (await reader.readexactly(size + 2))[:-2]


async def _parts(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while part := await reader.read(1 << 16):
        yield part


def main() -> None:
    plan = Plan(**json.load(sys.stdin))
    before = time.process_time()
    try:
        outcomes = asyncio.run(Client(plan).run())
    except KeyboardInterrupt:  # whoever started it ends, too
        sys.exit(130)
    found = {"outcomes": [asdict(o) for o in outcomes], "processor": time.process_time() - before}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
