"""samples.md: what the model answers to the same questions at every evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from owl_fast.images import ImageProcessor, load_image
from owl_fast.models.owl import Owl
from owl_fast.prompts import ImagePiece, Piece, caption_pieces, chat_pieces, encode
from owl_fast.tokenizer import Tokenizer
from owl_fast.training.answers import greedy_answers
from owl_fast.training.sample import Caption, Sample

FILE, PICTURES = "samples.md", "samples"
MAX_TOKENS, THUMBNAIL = 64, 224


@dataclass(frozen=True)
class Question:
    """A prompt up to the answer, and how it is shown."""

    record: str
    shown: str
    expected: str
    ids: list[int]
    pictures: tuple[Any, ...]


def questions(
    records: Iterable[Sample | Caption], tokenizer: Tokenizer, image_rows: int, max_length: int, count: int
) -> list[Question]:
    """The first `count` records whose last answer can be asked for within max_length."""
    found: list[Question] = []
    for record in records:
        if len(found) == count:
            break
        question = _question(record, tokenizer, image_rows)
        if question is not None and len(question.ids) + MAX_TOKENS <= max_length:
            found.append(question)
    return found


def _question(record: Sample | Caption, tokenizer: Tokenizer, image_rows: int) -> Question | None:
    if isinstance(record, Caption):
        pieces: Sequence[Piece] = caption_pieces(record.text, record.with_header)[:-1]
        shown, expected, pictures = "", record.text, [record.image]
    else:
        messages = list(record.messages)
        if not messages or messages[-1].get("role") != "assistant" or len(messages) < 2:
            return None
        pieces, given = chat_pieces(messages[:-1])
        pictures = [record.images[image] if isinstance(image, int) else image for image in given]
        shown, expected = _text(messages[-2]), _text(messages[-1])
    if sum(isinstance(piece, ImagePiece) for piece in pieces) != len(pictures):
        return None
    return Question(record.record, shown, expected, encode(pieces, tokenizer, image_rows), tuple(pictures))


def _text(message: Any) -> str:
    content = message["content"]
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part.get("type") == "text")


class Samples:
    """Asks a model the same questions again and again, and writes the answers down."""

    def __init__(
        self,
        folder: Path,
        asked: Sequence[Question],
        tokenizer: Tokenizer,
        processor: ImageProcessor,
    ) -> None:
        self.folder, self.asked, self.tokenizer, self.processor = folder, list(asked), tokenizer, processor

    def write(self, model: Owl, step: int) -> None:
        """Append the answers after update `step`; the first time, the questions and their pictures too."""
        if not self.asked:
            return
        path = self.folder / FILE
        begin = "" if path.exists() else self._heading()
        prompts = [question.ids for question in self.asked]
        answers = greedy_answers(model, prompts, self._pixels(), self.tokenizer.eos_id, MAX_TOKENS)
        lines = [f"\n## After update {step}\n"]
        lines += [f"{i}. {_quoted(self.tokenizer.decode(ids))}" for i, ids in enumerate(answers, start=1)]
        with path.open("a", encoding="utf-8") as file:
            file.write(begin + "\n".join(lines) + "\n")

    def _pixels(self) -> torch.Tensor | None:
        pictures = [self.processor(p, training=True) for q in self.asked for p in q.pictures]
        return torch.stack(pictures) if pictures else None

    def _heading(self) -> str:
        parts = [f"# Answers while training\n\nGreedy, at most {MAX_TOKENS} tokens each. Asked:\n"]
        for number, question in enumerate(self.asked, start=1):
            pictures = " ".join(
                f"![]({self._keep(picture, f'{number}-{i}')})" for i, picture in enumerate(question.pictures)
            )
            parts.append(
                f"{number}. {pictures} {_quoted(question.shown)} ({question.record})  \n"
                f"   in the data: {_quoted(question.expected)}"
            )
        return "\n".join(parts) + "\n"

    def _keep(self, picture: Any, name: str) -> str:
        folder = self.folder / PICTURES
        folder.mkdir(exist_ok=True)
        small = load_image(picture).convert("RGB")
        small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
        small.save(folder / f"{name}.jpg")
        return f"{PICTURES}/{name}.jpg"


def _quoted(text: str) -> str:
    """One line that Markdown shows as it is."""
    marked = "".join(f"\\{c}" if c in "\\`*_{}[]<>#|" else c for c in " ".join(text.split()))
    return marked or "(nothing)"
