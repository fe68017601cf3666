"""`stats`: samples, pictures, words, tokens, their lengths, and what occurs twice."""

from __future__ import annotations

import hashlib
import json
from array import array
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from owl_fast.data.task import Task
from owl_fast.errors import DataError
from owl_fast.training.chunks import over_chunks
from owl_fast.training.datasets import Dataset
from owl_fast.training.packing import IGNORED, encode_sample
from owl_fast.training.sample import Caption, Sample

ENDLESS = 1 << 40


class Counted(NamedTuple):
    """Of one good sample; content: a hash of its words and pictures."""

    pictures: int
    words: int
    tokens: int
    learned: int
    content: int


class Totals:
    """Sums, and of each sample its length and hash: 16 bytes a sample."""

    def __init__(self) -> None:
        self.bad = self.pictures = self.words = self.learned = 0
        self.tokens, self.contents = array("Q"), array("Q")

    def add(self, sample: Counted | None) -> None:
        if sample is None:
            self.bad += 1
            return
        self.pictures += sample.pictures
        self.words += sample.words
        self.learned += sample.learned
        self.tokens.append(sample.tokens)
        self.contents.append(sample.content)


def stats(task: Task) -> int:
    """Print a table for each dataset."""
    for dataset in task.datasets:
        totals = Totals()
        with tqdm(
            total=len(dataset), desc=f"counting {dataset.name}", unit="row", disable=not task.progress
        ) as bar:
            work = partial(_count_all, task, dataset)
            for size, counted in over_chunks(len(dataset), work, task.workers):
                for sample in counted:
                    totals.add(sample)
                bar.update(size)
        _print(dataset, totals, task.max_length)
    return 0


def _count_all(task: Task, dataset: Dataset, indices: range) -> list[Counted | None]:
    return [_count(task, dataset, index) for index in indices]


def _count(task: Task, dataset: Dataset, index: int) -> Counted | None:
    """None for a row that cannot be read; pictures are not looked at."""
    try:
        sample = dataset[index]
        encoded = encode_sample(sample, task.tokenizer, task.image_rows, ENDLESS)
    except DataError:
        return None
    texts = _texts(sample)
    pictures = [sample.image] if isinstance(sample, Caption) else list(sample.images)
    return Counted(
        len(pictures),
        sum(len(text.split()) for text in texts),
        len(encoded.token_ids),
        sum(label != IGNORED for label in encoded.labels),
        _content(texts, pictures),
    )


def _texts(sample: Sample | Caption) -> list[str]:
    if isinstance(sample, Caption):
        return [sample.text]
    parts = [
        [{"text": message["content"]}] if isinstance(message["content"], str) else message["content"]
        for message in sample.messages
    ]
    return [part["text"] for content in parts for part in content if "text" in part]


def _content(texts: list[str], pictures: list[Path | str | bytes]) -> int:
    digest = hashlib.blake2b(json.dumps(texts).encode(), digest_size=8)
    for picture in pictures:
        digest.update(picture if isinstance(picture, bytes) else str(picture).encode("utf-8", "replace"))
        digest.update(b"\0")
    return int.from_bytes(digest.digest(), "big")


def _print(dataset: Dataset, totals: Totals, max_length: int) -> None:
    print(f"{dataset.name} ({dataset.format}, {len(dataset.parts)} file(s))\n")
    good = len(totals.tokens)
    rows = [("samples", f"{good:,}"), ("pictures", f"{totals.pictures:,}"), ("words", f"{totals.words:,}")]
    if totals.bad:
        rows.insert(1, ("bad rows", f"{totals.bad:,}, not counted below; `check` names them"))
    if good:
        lengths = np.frombuffer(totals.tokens, dtype=np.uint64)
        low, median, high, most = np.quantile(lengths, (0, 0.5, 0.95, 1))
        # A sample fills max_length + 1 ids, the last of which is only predicted.
        over = int((lengths > max_length + 1).sum())
        twice = good - len(np.unique(np.frombuffer(totals.contents, dtype=np.uint64)))
        rows += [
            ("tokens", f"{int(lengths.sum()):,}, {totals.learned:,} of them learned"),
            ("tokens a sample", f"{low:.0f} to {most:.0f}, half below {median:.0f}, 95 % below {high:.0f}"),
            ("over the context", f"{over:,} ({over / good:.2%}) have more than {max_length} and are cut"),
            ("duplicates", f"{twice:,} ({twice / good:.2%}) repeat words and pictures of another"),
        ]
    width = max(len(name) for name, _ in rows)
    print("".join(f"  {name:<{width}}  {text}\n" for name, text in rows))
