"""Replicas on Ray Serve: who is asked, and what becomes of requests when one of them dies."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import select
import shutil
import signal
import socket
import threading
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

ray = pytest.importorskip("ray", reason="needs the extra ray: pip install '.[ray]' in the checkout")

from ray import serve  # noqa: E402
from ray.exceptions import ActorUnavailableError  # noqa: E402
from ray.serve.exceptions import DeploymentUnavailableError  # noqa: E402

from owl_fast import Engine  # noqa: E402
from owl_fast.engine.opening import BUNDLED  # noqa: E402
from owl_fast.errors import ParameterError  # noqa: E402
from owl_fast.serving import ray_app  # noqa: E402
from owl_fast.serving.app import page_files  # noqa: E402
from owl_fast.serving.errors import ApiError  # noqa: E402
from owl_fast.serving.limits import Limits  # noqa: E402
from owl_fast.serving.ray_app import Front, PictureRouter, Replica, Roomy, picture_of  # noqa: E402
from tests.serving.waiting import until  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
WHOLE = {**START, "headers": [(b"content-type", b"application/json")]}
PIECE = {"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True}
LAST = {"type": "http.response.body", "body": b"end"}
LOCAL = {"type": "http", "method": "POST", "path": "/", "headers": [], "client": ("127.0.0.1", 1)}


def chat(picture: bytes | None, text: str, **others: Any) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if picture is not None:
        uri = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
        content.insert(0, {"type": "image_url", "image_url": {"url": uri}})
    messages = [{"role": "user", "content": content}]
    return {"model": "owl-nano", "messages": messages, "temperature": 0, **others}


def encoded(body: dict[str, Any]) -> bytes:
    return json.dumps(body).encode()


def encoded_small(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def picture(color: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (color, 255 - color, 77)).save(buffer, "PNG")
    return buffer.getvalue()


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


# --- a cluster ---


class Cluster:
    """Two replicas of owl-nano behind one port."""

    def __init__(self, port: int) -> None:
        self.port, self._url = port, f"http://127.0.0.1:{port}"
        self._handle = serve.get_deployment_handle(ray_app.REPLICAS, "owl")

    def stats(self) -> dict[int, dict[str, Any]]:
        """Of each replica, by its process."""
        return {one["process"]: one for one in self._handle.broadcast("stats").results(timeout_s=30)}

    def of(self, name: str) -> dict[int, int]:
        return {process: one[name] for process, one in self.stats().items()}

    def open(self, body: dict[str, Any], timeout: float = 120) -> Any:
        request = urllib.request.Request(
            f"{self._url}/v1/chat/completions", encoded(body), {"content-type": "application/json"}
        )
        return urllib.request.urlopen(request, timeout=timeout)

    def get(self, path: str) -> Any:
        return urllib.request.urlopen(self._url + path, timeout=120)

    def metrics(self, name: str) -> Counter[str]:
        """Of each replica, by its name."""
        with self.get("/metrics") as reply:
            families = text_string_to_metric_families(reply.read().decode())
        found: Counter[str] = Counter()
        for sample in (sample for family in families for sample in family.samples if sample.name == name):
            found[sample.labels["replica"]] += int(sample.value)
        return found

    def ask(self, body: dict[str, Any]) -> str:
        with self.open(body) as reply:
            return str(json.load(reply)["choices"][0]["message"]["content"])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    mine = tmp_path_factory.mktemp("adapters") / "mine"
    mine.mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(BUNDLED / "adapter" / file, mine / file)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": variables}, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        args = {"replicas": "2", "device": "cpu", "max_context": "1024", "max_batch": "8"}
        args |= {"adapters": f"mine={mine}", "image_dir": str(ROOT / "examples")}
        serve.run(ray_app.build(args), name="owl", route_prefix="/")
        yield Cluster(port)
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.fixture(scope="module")
def golden() -> str:
    """What one engine without any of this answers."""
    return (
        Engine.from_pretrained(device="cpu")
        .generate(chat(None, "What color is the sky?")["messages"], max_tokens=16, temperature=0.0)
        .text
    )


QUESTION = chat(None, "What color is the sky?", max_tokens=16)


@pytest.mark.slow
def test_requests_spread_over_replicas_and_agree(cluster: Cluster, golden: str) -> None:
    before = cluster.of("answered")
    assert len(before) == 2
    with ThreadPoolExecutor(8) as clients:
        texts = set(clients.map(cluster.ask, [QUESTION] * 32))
    assert texts == {golden}
    gained = {process: count - before[process] for process, count in cluster.of("answered").items()}
    assert sum(gained.values()) == 32
    assert min(gained.values()) >= 4, gained


@pytest.mark.slow
def test_a_picture_is_encoded_by_one_replica_only(cluster: Cluster) -> None:
    """However many requests there are about it, one after the other or together."""
    before = cluster.stats()
    pictures = [picture(color) for color in range(0, 240, 40)]
    bodies = [chat(p, f"question {turn}", max_tokens=4) for turn in range(4) for p in pictures]
    with ThreadPoolExecutor(3) as clients:
        list(clients.map(cluster.ask, bodies))
    after = cluster.stats()
    gained = {
        process: {
            name: one[name] - before[process][name] for name in ("answered", "pictures", "pictures_cached")
        }
        for process, one in after.items()
    }
    assert sum(one["answered"] for one in gained.values()) == len(bodies) == 24
    assert min(one["answered"] for one in gained.values()) > 0, gained
    encoded = sum(one["pictures"] - one["pictures_cached"] for one in gained.values())
    assert encoded == len(pictures), gained


@pytest.mark.slow
def test_a_client_that_leaves_frees_its_replica(cluster: Cluster) -> None:
    before = sum(cluster.of("cancelled").values())
    long = chat(None, "Count.", max_tokens=900, ignore_eos=True, stream=True)
    reply = cluster.open(long)
    reply.readline()
    reply.close()
    until(lambda: sum(cluster.of("cancelled").values()) == before + 1, every=0.5)
    until(lambda: not any(cluster.of("running").values()), every=0.5)


@pytest.mark.slow
def test_the_door_is_that_of_the_server(cluster: Cluster) -> None:
    """Errors have the same form, whoever finds them."""
    for body, status, code in (
        ({"model": "other", "messages": [{"role": "user", "content": "hi"}]}, 404, "model_not_found"),
        (chat(b"no picture", "hi"), 400, "invalid_image"),
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            cluster.open(body)
        assert refused.value.code == status
        assert json.load(refused.value)["error"]["code"] == code
        assert refused.value.headers["x-content-type-options"] == "nosniff"


@pytest.mark.slow
def test_adapters_files_and_metrics_are_those_of_the_server(cluster: Cluster, golden: str) -> None:
    assert len(cluster.metrics("owl_steps_total")) == 2
    before = cluster.metrics("owl_requests_total").total()
    with cluster.get("/v1/models") as reply:
        assert [model["id"] for model in json.load(reply)["data"]] == ["owl-nano", "mine"]
    assert cluster.ask({**QUESTION, "model": "mine"})
    assert cluster.ask(QUESTION) == golden
    star = chat(None, "What color is the star?", max_tokens=16)
    star["messages"][0]["content"].insert(0, {"type": "image_url", "image_url": {"url": "scene.png"}})
    assert cluster.ask(star) == "The star is red."
    until(lambda: cluster.metrics("owl_requests_total").total() == before + 3, every=0.5)


def read(cluster: Cluster, body: dict[str, Any], begun: threading.Semaphore) -> str:
    """How a stream ended."""
    last, pieces = b"", 0
    with cluster.open(body) as reply:
        for line in reply:
            if line.startswith(b"data:"):
                last, pieces = line, pieces + 1
                if pieces == 3:
                    begun.release()
    if last.strip() == b"data: [DONE]":
        return "whole"
    return str(json.loads(last[5:])["error"]["code"])


@pytest.mark.slow
def test_a_replica_that_dies_takes_nothing_else_with_it(cluster: Cluster, golden: str) -> None:
    """Its own streams end with an event; what others answer, and what it had not begun, is answered."""
    before = cluster.of("answered")
    begun, streams, wholes = threading.Semaphore(0), 8, 6
    long = chat(None, "Count.", max_tokens=900, ignore_eos=True)
    with ThreadPoolExecutor(streams + wholes) as clients:
        ends: list[Future[str]] = [
            clients.submit(read, cluster, {**long, "stream": True}, begun) for _ in range(streams)
        ]
        for _ in range(streams):
            assert begun.acquire(timeout=60)
        texts = [clients.submit(cluster.ask, long) for _ in range(wholes)]
        until(lambda: sum(cluster.of("running").values()) > streams, every=0.5)
        running = cluster.of("running")
        victim, other = sorted(running, key=lambda process: -running[process])
        os.kill(victim, signal.SIGKILL)
        found = Counter(end.result() for end in ends)
        answers = {text.result() for text in texts}
    assert found.keys() <= {"whole", "replica_lost"}
    assert 0 < found["replica_lost"] < streams, found
    assert len(answers) == 1
    until(lambda: len(cluster.stats()) == 2, 180, every=0.5)
    assert victim not in cluster.stats()
    assert cluster.of("answered")[other] == before[other] + found["whole"] + wholes
    (new,) = cluster.stats().keys() - {other}
    began = cluster.of("answered")[new]
    with ThreadPoolExecutor(8) as clients:
        assert set(clients.map(cluster.ask, [QUESTION] * 24)) == {golden}
    assert cluster.of("answered")[new] > began


@pytest.mark.slow
def test_a_full_server_says_how_it_is_and_who_leaves_makes_room(cluster: Cluster, golden: str) -> None:
    body = encoded(chat(None, "Count.", max_tokens=900, ignore_eos=True, n=4))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{cluster.port}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    clients = [socket.create_connection(("127.0.0.1", cluster.port)) for _ in range(110)]
    for client in clients:
        client.sendall(head.encode() + body)
    refused: list[socket.socket] = []
    until(lambda: bool(refused.extend(select.select(clients, [], [], 1)[0]) or refused))
    assert refused[0].recv(100).startswith(b"HTTP/1.1 429 ")
    assert all(cluster.of("running").values())
    for path in ("/", "/health", "/ready", "/v1/models", "/metrics"):
        with cluster.get(path) as reply:
            assert reply.status == 200
    for client in clients:
        client.close()
    until(lambda: not any(cluster.of("running").values()), 20, every=0.5)
    assert cluster.ask(QUESTION) == golden
