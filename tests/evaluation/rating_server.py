"""The rating page's server in a thread, about a small study."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from owl_fast.evaluate.rating.app import make_app
from owl_fast.evaluate.rating.book import Book
from owl_fast.evaluation.study import Study, open_study
from owl_fast.serving.limits import Limits
from tests.evaluation.small_set import answers_of, small_set, write_lines
from tests.serving.running import running

HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script> & **bold**'
SYSTEMS = {
    "secret-alpha": ["red", " a ball", "green", "three " * 300],
    "secret-beta:v2": ["blue", "a square", HOSTILE, "无法回溯"],
    "secret-gamma": ["white", "a dot", ""],
}
ANSWERS = 11


def small_study(folder: Path) -> Study:
    """Four questions, three systems; the last one left the last question out."""
    small_set(folder / "data")
    files = [
        write_lines(folder / f"{number}.jsonl", answers_of(system, texts))
        for number, (system, texts) in enumerate(SYSTEMS.items())
    ]
    return open_study(folder / "study", files, folder / "data")


@dataclass
class Desk:
    study: Study
    book: Book
    client: httpx.Client

    @property
    def origin(self) -> str:
        return str(self.client.base_url).rstrip("/")

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.client.post(path, json=body)

    def questions(self, rater: str = "ann") -> list[dict[str, Any]]:
        reply = self.post("/open", rater=rater)
        assert reply.status_code == 200, reply.text
        found: list[dict[str, Any]] = reply.json()["questions"]
        return found

    def lines(self, rater: str = "ann") -> list[dict[str, Any]]:
        """What is on disk."""
        path = self.study.folder / "ratings" / f"{rater}.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@contextmanager
def rating(study: Study, rater: str | None = None) -> Iterator[Desk]:
    book, limits = Book(study), Limits()
    try:
        with (
            running(make_app(study, book, limits, rater), limits) as server,
            httpx.Client(base_url=f"http://127.0.0.1:{server.address[1]}", trust_env=False) as client,
        ):
            yield Desk(study, book, client)
    finally:
        book.close()
