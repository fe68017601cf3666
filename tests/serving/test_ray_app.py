"""What Ray is told: which replica gets a picture, what a replica says, and arguments that are none."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

ray = pytest.importorskip("ray", reason="needs the extra ray: pip install '.[ray]' in the checkout")


from owl_fast.errors import ParameterError  # noqa: E402
from owl_fast.serving import ray_app  # noqa: E402
from owl_fast.serving.errors import ApiError  # noqa: E402
from owl_fast.serving.ray_app import PictureRouter, Replica, picture_of  # noqa: E402
from tests.serving.ray_requests import chat, encoded, picture  # noqa: E402

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
PIECE = {"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True}
LAST = {"type": "http.response.body", "body": b"end"}
LOCAL = {"type": "http", "method": "POST", "path": "/", "headers": [], "client": ("127.0.0.1", 1)}


def test_a_picture_has_a_name_wherever_it_is_asked_about() -> None:
    first, second = picture(1), picture(2)
    name = picture_of(encoded(chat(first, "What is it?")))
    assert len(name) == 32
    assert picture_of(encoded(chat(first, "And its colour?", max_tokens=3))) == name
    assert picture_of(encoded(chat(second, "What is it?"))) != name
    both = chat(first, "a")
    both["messages"] += chat(second, "b")["messages"]
    assert picture_of(encoded(both)) == name
    assert picture_of(json.dumps(chat(first, "x"), indent=1).encode()) == name


@pytest.mark.parametrize(
    "text", ["hello", '{"url": "data:image/png;base64,AAAA"}', '"url":"https://a.example"']
)
def test_texts_name_no_picture(text: str) -> None:
    assert picture_of(encoded(chat(None, text))) == ""


def chosen(session: str, count: int = 4) -> list[list[int]]:
    replicas = [SimpleNamespace(replica_id=SimpleNamespace(unique_id=f"r{i}"), i=i) for i in range(count)]
    pending = SimpleNamespace(
        metadata=SimpleNamespace(session_id=session), routing_context=SimpleNamespace(should_backoff=False)
    )
    router = PictureRouter.__new__(PictureRouter)
    ranks = asyncio.run(router.choose_replicas(replicas, pending))
    assert pending.routing_context.should_backoff
    return [[replica.i for replica in rank] for rank in ranks]


def test_a_picture_prefers_one_replica_and_falls_back_to_all_others() -> None:
    firsts = Counter()
    for index in range(200):
        (first,), others = chosen(f"picture {index}")
        assert {first, *others} == {0, 1, 2, 3}
        assert chosen(f"picture {index}") == [[first], others]
        firsts[first] += 1
    assert min(firsts.values()) > 25
    assert chosen("", 3) == [[0, 1, 2]]


def test_only_the_pictures_of_a_lost_replica_move() -> None:
    for index in range(100):
        (first,), _ = chosen(f"picture {index}", 4)
        (now,), _ = chosen(f"picture {index}", 3)
        assert now == first or first == 3


def replica_of(app: Callable[..., Any]) -> Replica:
    replica = Replica.__new__(Replica)
    replica._app, replica._service = app, SimpleNamespace(close=lambda: None)  # type: ignore[assignment]
    return replica


def test_a_replica_hands_over_all_that_has_been_said() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert await receive() == {"type": "http.request", "body": b"hello", "more_body": False}
        await send(START)
        await send(PIECE)
        await asyncio.sleep(0)
        await send(LAST)

    async def batches() -> list[Any]:
        return [batch async for batch in replica_of(app).ask(LOCAL, b"hello")]

    sign, *said = asyncio.run(batches())
    assert sign == []
    assert [message for batch in said for message in batch] == [START, PIECE, LAST]
    assert 1 <= len(said) <= 2


def test_who_stops_listening_ends_the_answer() -> None:
    ended = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(START)
        try:
            await receive()  # the second one never comes
        finally:
            ended.append(True)

    async def leave() -> None:
        messages = replica_of(app).ask(LOCAL, b"")
        assert await anext(messages) == []  # it is here
        assert await anext(messages) == [START]
        await messages.aclose()  # type: ignore[attr-defined]
        await asyncio.sleep(0)

    asyncio.run(leave())
    assert ended == [True]


def test_what_the_application_raises_comes_out() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        raise ValueError("broken")

    async def listen() -> None:
        async for _ in replica_of(app).ask(LOCAL, b""):
            pass

    with pytest.raises(ValueError, match="broken"):
        asyncio.run(listen())


def test_a_replica_whose_model_is_silent_is_ill(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = []

    class Watching:
        def __init__(self, service: Any, leave: Any) -> None:
            pass

        async def watch(self) -> None:
            watched.append(True)

    def silent() -> None:
        raise ApiError(503, "nothing has been heard of the model for 6 s")

    async def checked() -> None:
        replica = replica_of(lambda: None)
        replica._watching = None
        replica._service = SimpleNamespace(close=lambda: None, check_ready=silent)  # type: ignore[assignment]
        for _ in range(2):
            with pytest.raises(RuntimeError, match="for 6 s"):
                await replica.check_health()
            await asyncio.sleep(0)

    monkeypatch.setattr(ray_app, "Heartbeat", Watching)
    asyncio.run(checked())
    assert watched == [True]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"replica": "2"}, "replica is no argument; wanted some of replicas, cpus"),
        ({"gpus": "one"}, "one"),
        ({"adapters": "mine"}, "NAME=DIR"),
        ({"image_hosts": "https://a.example"}, "hosts of pictures"),
    ],
)
def test_arguments_that_are_none(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        ray_app.build(args)


def test_a_short_key_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWL_API_KEY", "short")
    with pytest.raises(ParameterError, match="at least 16"):
        ray_app.build({})
