"""A small data set in OwlEval's format."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

QUESTIONS: list[dict[str, Any]] = [
    {"image": "1.jpg", "question_id": 1, "question": "What color is the circle?", "ability": "a,b",
     "category": ["single_turn"]},
    {"image": "2.jpg", "question_id": 2, "question": "What is on the left?", "ability": "a,b",
     "category": ["single_turn", "multi_turn"]},
    {"image": "2.jpg", "question_id": 3, "question": "And what color is it?", "ability": "a,b,f",
     "category": ["multi_turn"]},
    {"image": "3.jpg", "question_id": 4, "question": "How many shapes are there?", "ability": "a,b,e",
     "category": ["single_turn"]},
]  # fmt: skip


def small_set(folder: Path) -> Path:
    """Four questions on three pictures, two of them one conversation; a picture with another ending than
    its question says."""
    (folder / "cases").mkdir(parents=True)
    for name, shapes in {
        "1.jpg": [("red", 60)],
        "2.png": [("green", 20), ("blue", 80)],
        "3.jpg": [("red", 20), ("yellow", 60), ("blue", 100)],
    }.items():
        image = Image.new("RGB", (160, 160), "white")
        for color, left in shapes:
            ImageDraw.Draw(image).ellipse((left, 60, left + 30, 90), fill=color)
        image.save(folder / "cases" / name)
    write_lines(folder / "questions.jsonl", QUESTIONS)
    return folder


def answer(number: int, text: str, image: str | None = None, system: str = "small") -> dict[str, Any]:
    question = next((q for q in QUESTIONS if q["question_id"] == number), QUESTIONS[0])
    return {
        "image": image or question["image"],
        "question_id": number,
        "question": question["question"],
        "answer": text,
        "model_id": system,
    }


def answers_of(system: str, texts: Iterable[str]) -> list[dict[str, Any]]:
    return [answer(number, text, system=system) for number, text in enumerate(texts, start=1)]


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path
