"""The front of the replicas: whom it asks, what it answers itself, and requests whose replica dies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

ray = pytest.importorskip("ray", reason="needs the extra ray: pip install '.[ray]' in the checkout")

from ray.exceptions import ActorUnavailableError  # noqa: E402
from ray.serve.exceptions import DeploymentUnavailableError  # noqa: E402

from owl_fast.serving import ray_app  # noqa: E402
from owl_fast.serving.app import page_files  # noqa: E402
from owl_fast.serving.errors import ApiError  # noqa: E402
from owl_fast.serving.limits import Limits  # noqa: E402
from owl_fast.serving.ray_app import Front, Roomy  # noqa: E402
from tests.serving.ray_requests import encoded_small  # noqa: E402

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
WHOLE = {**START, "headers": [(b"content-type", b"application/json")]}
PIECE = {"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True}
LAST = {"type": "http.response.body", "body": b"end"}
LOCAL = {"type": "http", "method": "POST", "path": "/", "headers": [], "client": ("127.0.0.1", 1)}


Say = Callable[[], AsyncIterator[list[dict[str, Any]]]]


class Said:
    """As Ray's generators of replies are."""

    def __init__(self, messages: AsyncIterator[list[dict[str, Any]]]) -> None:
        self._messages, self.cancelled = messages, False

    def __aiter__(self) -> Said:
        return self

    async def __anext__(self) -> list[dict[str, Any]]:
        return await anext(self._messages)

    def cancel(self) -> None:
        self.cancelled = True


class FakeReplicas:
    """Each call does what the next script says. told: what the replicas say when all are asked."""

    def __init__(self, *scripts: Say, told: Any = ()) -> None:
        self.scripts, self.given, self.told = list(scripts), dict[str, Any](), told
        self.said: list[Said] = []
        self.broadcasts: list[str] = []

    @property
    def calls(self) -> int:
        return len(self.said)

    def options(self, **given: Any) -> FakeReplicas:
        self.given = given
        return self

    def remote(self, scope: dict[str, Any], body: bytes) -> Said:
        self.scope, self.body = scope, body
        self.said.append(Said(self.scripts.pop(0)()))
        return self.said[-1]

    def broadcast(self, method: str) -> FakeReplicas:
        self.broadcasts.append(method)
        return self

    def results(self, timeout_s: float, return_exceptions: bool) -> list[Any]:
        assert timeout_s < 10
        assert return_exceptions
        if isinstance(self.told, Exception):
            raise self.told
        return list(self.told)


def saying(*batches: list[dict[str, Any]], error: Exception | None = None) -> Say:
    async def say() -> AsyncIterator[list[dict[str, Any]]]:
        for batch in batches:
            yield batch
        if error is not None:
            raise error

    return say


async def ask(front: Front, **scope: Any) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []
    parts = [
        {"type": "http.request", "body": b'{"a"', "more_body": True},
        {"type": "http.request", "body": b": 1}"},
    ]

    async def receive() -> dict[str, Any]:
        return parts.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await front({**LOCAL, **scope}, receive, send)
    return sent


def asked(replicas: FakeReplicas, only_local: bool = False, **scope: Any) -> list[dict[str, Any]]:
    async def run() -> list[dict[str, Any]]:
        return await ask(Front(replicas, only_local), **scope)

    return asyncio.run(run())


def lost() -> ActorUnavailableError:
    return ActorUnavailableError("gone", None)


def test_the_front_passes_on_what_is_said() -> None:
    replicas = FakeReplicas(saying([START, PIECE], [PIECE], [LAST]))
    assert asked(replicas, state={"client": "key 0"}, app=object()) == [START, PIECE, PIECE, LAST]
    assert replicas.body == b'{"a": 1}'
    assert replicas.scope == {**LOCAL, "state": {"client": "key 0"}}
    assert replicas.given == {"method_name": "ask", "stream": True, "session_id": ""}


def test_what_was_not_begun_is_asked_of_another_replica() -> None:
    replicas = FakeReplicas(saying(error=lost()), saying([WHOLE], [LAST]))
    assert asked(replicas) == [WHOLE, LAST]
    assert replicas.calls == 2


def test_it_is_not_asked_for_ever() -> None:
    replicas = FakeReplicas(*[saying(error=lost())] * 9)
    with pytest.raises(ApiError, match="try again") as refused:
        asked(replicas)
    assert (refused.value.status, replicas.calls) == (503, ray_app.TRIES)


def test_a_stream_that_was_begun_ends_with_an_event() -> None:
    replicas = FakeReplicas(saying([START, PIECE], error=lost()))
    *before, event = asked(replicas)
    assert before == [START, PIECE]
    assert replicas.calls == 1
    assert json.loads(event["body"].removeprefix(b"data: "))["error"]["code"] == "replica_lost"
    assert not event.get("more_body", False)


def test_a_reply_that_was_begun_has_no_end() -> None:
    with pytest.raises(ApiError, match="ask again"):
        asked(FakeReplicas(saying([WHOLE], error=lost())))


FEW = replace(Limits(), waiting=4, wait=0.2)


async def never() -> AsyncIterator[list[dict[str, Any]]]:
    """No replica has room."""
    await asyncio.Event().wait()
    yield []


async def waiting(front: Front, client: str) -> asyncio.Task[list[dict[str, Any]]]:
    task = asyncio.create_task(ask(front, state={"client": client}))
    await asyncio.sleep(0.01)
    return task


async def refusal(task: asyncio.Task[list[dict[str, Any]]]) -> tuple[int, str | None]:
    with pytest.raises(ApiError) as refused:
        await task
    assert int(refused.value.headers["retry-after"]) > 0
    return refused.value.status, refused.value.code


def test_a_full_queue_is_429_and_who_holds_most_gives_way() -> None:
    replicas = FakeReplicas(*[never] * 9)

    async def run() -> None:
        front = Front(replicas, False, FEW)
        greedy = [await waiting(front, "greedy") for _ in range(4)]
        assert await refusal(await waiting(front, "greedy")) == (429, "queue_full")
        assert replicas.calls == 4
        modest = [await waiting(front, "modest") for _ in range(2)]
        assert [task.done() for task in greedy + modest] == [False, False, True, True, False, False]
        assert [said.cancelled for said in replicas.said] == [False, False, True, True, False, False]
        assert await refusal(greedy[3]) == (429, "queue_full")
        assert await refusal(await waiting(front, "modest")) == (429, "queue_full")
        for task in (*greedy[:2], *modest):
            assert await refusal(task) == (503, "overloaded")
        assert all(said.cancelled for said in replicas.said)
        await waiting(front, "modest")

    asyncio.run(run())


def test_who_leaves_frees_its_place() -> None:
    replicas = FakeReplicas(*[never] * 9)

    async def run() -> None:
        front = Front(replicas, False, FEW)
        tasks = [await waiting(front, "one") for _ in range(4)]
        tasks[1].cancel()
        await asyncio.sleep(0.01)
        tasks.append(await waiting(front, "one"))
        assert [task.done() for task in tasks] == [False, True, False, False, False]
        assert replicas.said[1].cancelled

    asyncio.run(run())


def test_what_a_replica_has_taken_does_not_wait() -> None:
    """It holds no place, and takes as long as it takes."""
    taken = asyncio.Event()

    async def slow() -> AsyncIterator[list[dict[str, Any]]]:
        yield []
        await taken.wait()
        yield [WHOLE, LAST]

    async def run() -> None:
        front = Front(FakeReplicas(*[slow] * 9), False, FEW)
        tasks = [await waiting(front, "one") for _ in range(9)]
        await asyncio.sleep(1.5 * FEW.wait)
        taken.set()
        assert await asyncio.gather(*tasks) == [[WHOLE, LAST]] * 9

    asyncio.run(run())


def own(replicas: FakeReplicas, path: str) -> tuple[int, bytes]:
    """What the front itself answers."""
    start, *rest = asked(replicas, method="GET", path=path)
    assert replicas.calls == 0
    return start["status"], b"".join(message["body"] for message in rest)


def test_the_page_waits_for_nobody() -> None:
    for path, file in page_files().items():
        assert own(FakeReplicas(), path) == (200, file.read_bytes())


LOADING = [[], DeploymentUnavailableError("replicas"), TimeoutError()]


@pytest.mark.parametrize(
    ("told", "health", "ready"),
    [
        ([False, True, lost()], "ok", "ready"),
        ([False, TimeoutError()], "ok", "not_ready"),
        ([TimeoutError(), lost()], "not_ready", "not_ready"),
        *((told, "model_loading", "model_loading") for told in LOADING),
    ],
)
def test_the_front_is_as_well_as_the_best_replica(told: Any, health: str, ready: str) -> None:
    for path, status in (("/health", health), ("/ready", ready)):
        replicas = FakeReplicas(told=told)
        if status in ("ok", "ready"):
            assert own(replicas, path) == (200, encoded_small({"status": status}))
        else:
            with pytest.raises(ApiError) as refused:
                own(replicas, path)
            assert (refused.value.status, refused.value.code) == (503, status)


def test_models_are_those_of_any_replica() -> None:
    assert own(FakeReplicas(told=[lost(), [{"id": "owl"}]]), "/v1/models") == (
        200,
        encoded_small({"object": "list", "data": [{"id": "owl"}]}),
    )


def test_many_who_ask_how_the_replicas_are_ask_once() -> None:
    replicas = FakeReplicas(told=[True])

    async def run() -> None:
        front = Front(replicas, False)
        for _ in range(2):
            await asyncio.gather(*(ask(front, method="GET", path="/ready") for _ in range(9)))
        await asyncio.gather(
            ask(front, method="GET", path="/ready"), ask(front, method="GET", path="/health")
        )

    asyncio.run(run())
    assert replicas.broadcasts == ["is_ready"] * 3


def test_requests_leave_places_of_a_replica_free() -> None:
    replica = Roomy.__new__(Roomy)
    replica._replica_info = SimpleNamespace(max_ongoing_requests=18)
    assert replica.max_ongoing_requests == 18 - ray_app.ASIDE


@pytest.mark.parametrize("client", [("192.0.2.1", 1), ("::ffff:192.0.2.1", 1), None, ("", 0)])
def test_without_a_key_other_machines_are_not_answered(client: tuple[str, int] | None) -> None:
    replicas = FakeReplicas(saying([WHOLE], [LAST]))
    with pytest.raises(ApiError, match="OWL_API_KEY"):
        asked(replicas, only_local=True, client=client)
    assert replicas.calls == 0
    assert asked(replicas, only_local=True, client=("::1", 1)) == [WHOLE, LAST]
