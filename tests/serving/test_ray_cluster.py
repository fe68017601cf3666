"""Two replicas of owl-nano on Ray: they answer as one engine does, also when one of them dies."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

ray = pytest.importorskip("ray", reason="needs the extra ray: pip install '.[ray]' in the checkout")

from ray import serve  # noqa: E402

from owl_fast import Engine  # noqa: E402
from owl_fast.engine.opening import BUNDLED  # noqa: E402
from owl_fast.serving import ray_app  # noqa: E402
from tests.serving.ray_requests import chat, encoded, picture  # noqa: E402
from tests.serving.waiting import until  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


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
