"""What is asked of data with answers, in any format of the training readers, and the answers of people.

Rows about the same pictures that ask the same are one case, their answers its references: the five captions
of a picture in COCO, the ten answers of VQA.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from owl_fast.errors import DataError, ParameterError
from owl_fast.evaluation.answering import Talk
from owl_fast.evaluation.record import file_sha256
from owl_fast.prompts import Message
from owl_fast.training.datasets import Dataset
from owl_fast.training.sample import Caption, Sample

QUESTION = "{question}"  # stands in a prompt for what the row asks


@dataclass(frozen=True)
class Question:
    """references: what people answered."""

    id: int
    text: str
    references: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Case:
    """One conversation, asked as in the row `where`."""

    dataset: Dataset
    index: int
    where: str
    system: str | None
    questions: Sequence[Question]

    def talk(self, prompt: str, system: str | None) -> Talk:
        """prompt: asks for a caption. What a row asks itself stands in QUESTION's place, or alone."""
        ids = [question.id for question in self.questions]
        return Talk(ids, lambda: self._messages(prompt), system if system is not None else self.system)

    def _messages(self, prompt: str) -> list[Message]:
        row = self.dataset[self.index]
        if isinstance(row, Caption):
            parts = [{"type": "image", "image": row.image}, {"type": "text", "text": prompt}]
            return [{"role": "user", "content": parts}]
        prompt = prompt if QUESTION in prompt else QUESTION
        return [_asked(message, row, prompt) for message in row.messages if message["role"] == "user"]

    def pictures(self) -> list[str | None]:
        """SHA-256 of each as it is kept; None of one that cannot be read."""
        return [_sha256(source) for source in _pictures(self.dataset[self.index])]


def cases(
    datasets: Sequence[Dataset], captions: bool, limit: int | None = None, bar: bool = False
) -> list[Case]:
    """In the order of their first rows. captions: whether rows may be a picture and its caption; if not, each
    has to ask something. limit: of cases. DataError for a row that is bad, or has nothing to compare with."""
    found: dict[Any, Case] = {}
    count = 0
    for dataset in datasets:
        if dataset.weight is not None:
            raise ParameterError(
                f"{dataset.name}: a weight of {dataset.weight:g}; all rows are asked, leave it out"
            )
        rows = tqdm(range(len(dataset)), f"reading {dataset.name}", unit="row", leave=False, disable=not bar)
        for index in rows:
            row = dataset[index]
            if isinstance(row, Caption) and not captions:
                raise DataError(f"{row.record}: a caption, and no question; `evaluate caption` is for those")
            system, pairs = _pairs(row)
            asked = tuple(question for question, _ in pairs)
            key = (system, tuple(map(_identity, _pictures(row))), asked)
            if key not in found:
                if len(found) == limit:
                    continue  # later rows may answer what is asked already
                numbered = [Question(count + n, question) for n, question in enumerate(asked, start=1)]
                count += len(asked)
                found[key] = Case(dataset, index, row.record, system, numbered)
            for question, (_, reference) in zip(found[key].questions, pairs, strict=True):
                question.references.append(reference)
    if not found:
        raise DataError(f"{', '.join(dataset.name for dataset in datasets)}: nothing to ask")
    return list(found.values())


def _pairs(row: Sample | Caption) -> tuple[str | None, list[tuple[str, str]]]:
    """The header, and (question, reference) of each turn."""
    if isinstance(row, Caption):
        return None, [("", row.text)]
    headers = [_text(message) for message in row.messages if message["role"] in ("system", "developer")]
    turns = [message for message in row.messages if message["role"] in ("user", "assistant")]
    asked, answered = turns[::2], turns[1::2]
    if (
        len(asked) != len(answered)
        or any(message["role"] != "user" for message in asked)
        or any(message["role"] != "assistant" for message in answered)
    ):
        raise DataError(f"{row.record}: wanted questions and answers in turn, to compare with the answers")
    pairs = [(_text(one), _text(other)) for one, other in zip(asked, answered, strict=True)]
    return "\n".join(headers) if headers else None, pairs


def _text(message: Message) -> str:
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def _asked(message: Message, row: Sample, prompt: str) -> Message:
    """A user's message with its pictures, and with the prompt around its last text."""
    content = message["content"]
    if isinstance(content, str):
        return {"role": "user", "content": prompt.replace(QUESTION, content)}
    parts = [_resolved(part, row) for part in content]
    last = max((n for n, part in enumerate(parts) if part["type"] == "text"), default=None)
    if last is not None:
        parts[last] = {**parts[last], "text": prompt.replace(QUESTION, parts[last]["text"].strip())}
    return {"role": "user", "content": parts}


def _resolved(part: Mapping[str, Any], row: Sample) -> dict[str, Any]:
    """With the picture itself where a number stands for one of the row's."""
    number = part.get("image")
    return {**part, "image": row.images[number]} if isinstance(number, int) else dict(part)


def _pictures(row: Sample | Caption) -> Iterator[Any]:
    if isinstance(row, Caption):
        yield row.image
        return
    for message in row.messages:
        if message["role"] == "user" and not isinstance(message["content"], str):
            for part in message["content"]:
                if part["type"] == "image":
                    yield _resolved(part, row)["image"]


def _identity(source: Any) -> Any:
    return hashlib.sha256(source).digest() if isinstance(source, bytes) else str(source)


def _sha256(source: Any) -> str | None:
    if isinstance(source, str) and source.startswith("data:"):
        return hashlib.sha256(source.encode()).hexdigest()
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    return file_sha256(source)
