"""A folder like a checkout in which there is everything the documents speak of, in small."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import harness
from owl_fast.checkpoints.fingerprint import weights_sha256
from owl_fast.files import write_json
from owl_fast.lora import Base
from tests.chat.fake_server import FakeServer, answer
from tests.evaluation.small_set import answers_of, small_set, write_lines
from tests.export.adapters import adapter_of
from tests.golden_data import FirstRelease
from tests.test_video import encoded

ROOT = Path(__file__).resolve().parents[2]
NANO = ROOT / "owl_fast/assets/owl-nano"
MODELS = ("MODEL", "BASE", "mplug-owl-llama-7b", "models/mplug-owl-llama-7b")


def prepare(folder: Path) -> None:
    for path in ROOT.iterdir():
        if not path.name.startswith(".") and path.name != "build":
            (folder / path.name).symlink_to(path)
    for name in MODELS:
        place = folder / name
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(NANO)
    _pictures(folder)
    _training_data(folder)
    _evaluation(folder)
    _results(folder)
    adapter_of(NANO, folder / "ADAPTER", Base("nano", weights_sha256(NANO)))
    release = FirstRelease()
    for path in (release.checkpoint, release.folder / "tokenizer.model"):
        shutil.copy(path, folder)
    (folder / "clip.mp4").write_bytes(encoded("mp4", "mpeg4", 8))


def _results(folder: Path) -> None:
    """Of benchmarks."""
    for name, took in (("now", 1.0), ("before", 1.0), ("after", 2.0)):
        values = [took, 1.1 * took, 1.2 * took]
        rows = [harness.row("decode", "tiny float32 B1-C4", "owl_fast", "throughput", "tok/s", values)]
        write_json(folder / f"{name}.json", harness.report(rows))


def _pictures(folder: Path) -> None:
    scene = ROOT / "examples/scene.png"
    for name in ("a.jpg", "coco/train2017/a.jpg", "val2014/a.jpg", "photos/a.jpg", "photos/b.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(scene, folder / name)


def _training_data(folder: Path) -> None:
    rows = [json.loads(line) for line in (ROOT / "examples/brief.jsonl").read_text().splitlines()]
    for row in rows:
        for part in (part for message in row["messages"] for part in message["content"]):
            if isinstance(part, dict) and part["type"] == "image_url":
                part["image_url"]["url"] = "a.jpg"
    write_lines(folder / "mine.jsonl", rows)
    said = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A star."}]
    llava = [{"id": str(number), "image": "a.jpg", "conversations": said} for number in range(8)]
    (folder / "llava.json").write_text(json.dumps(llava))
    alpaca = [{"instruction": f"Name {n} fruits.", "input": "", "output": "Plums."} for n in range(8)]
    (folder / "alpaca.json").write_text(json.dumps(alpaca))
    (folder / "pairs").mkdir()
    (folder / "caption.txt").write_text("A star.")
    with tarfile.open(folder / "pairs/0.tar", "w") as tar:
        for number in range(8):
            tar.add(folder / "a.jpg", f"{number}.jpg")
            tar.add(folder / "caption.txt", f"{number}.txt")


def _evaluation(folder: Path) -> None:
    small_set(folder / "owleval")
    (folder / "owleval/answer").mkdir()
    for system in ("one", "two"):
        write_lines(folder / f"owleval/answer/{system}.jsonl", answers_of(system, ["red", "a", "b", "c"]))
    write_lines(folder / "ours.jsonl", answers_of("ours", ["red", "a", "b", "c"]))
    captions = {
        "images": [{"id": 9, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 9, "id": n, "caption": f"A red star {n}."} for n in range(5)],
    }
    (folder / "captions.json").write_text(json.dumps(captions))
    asked = {"image": "a.jpg", "question": "What color is the star?", "answer": "red"}
    write_lines(folder / "vqa.jsonl", [asked | {"question_id": 1}])
    questions: list[Mapping[str, Any]] = [{"question_id": 1, "text": "What is 2 + 3?", "category": "maths"}]
    (folder / "vicuna-set").mkdir()
    write_lines(folder / "vicuna-set/questions.jsonl", questions)
    (folder / "answers").mkdir()
    for system in ("gpt-3.5", "mine"):
        line = {"question_id": 1, "text": "Five.", "model_id": system}
        write_lines(folder / f"answers/{system}.jsonl", [line])


@contextmanager
def judge() -> Iterator[str]:
    """The address of a server that grades, and scores pairs."""

    def reply(request: Mapping[str, Any]) -> Iterator[Any]:
        pair = "[The second assistant]" in str(request["messages"])
        return iter(answer('{"first": 9, "second": 8}' if pair else '{"grade": "B", "abilities": ["a"]}'))

    with FakeServer(reply).running() as server:
        yield server.url
