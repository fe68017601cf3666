"""The reference models of tests/golden and the logits that the original implementation gave for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load_file
from torch import Tensor

from benchmarks.harness import ROOT

FOLDER = ROOT / "tests/golden"
NAMES = ("tiny", "micro")
CASES = ("text_only", "one_image", "two_images", "two_turns", "batch_images", "batch_image_and_text")


class Sample(NamedTuple):
    """A prompt (-1: a row of a picture), (3, S, S) of each of its pictures, and the logits (8, V) of its
    end."""

    ids: list[int]
    pixels: list[Tensor]
    logits: Tensor


def checkpoint(name: str) -> Path:
    return FOLDER / name / "checkpoint"


def samples(name: str) -> Iterator[Sample]:
    """Of every prompt of one model."""
    folder = FOLDER / name / "golden"
    files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    pixels = load_file(folder / "preprocess.safetensors")
    for case in CASES:
        meta, stored = files[f"forward_{case}"]["meta"], load_file(folder / f"forward_{case}.safetensors")
        numbers = iter(meta["image_index"])
        for row, count in enumerate(meta["num_images"]):
            length = int(stored["attention_mask"][row].sum())
            yield Sample(
                stored["input_ids"][row, :length].tolist(),
                [pixels[f"pixel_values.{next(numbers)}"] for _ in range(count)],
                stored["logits_tail"][row],
            )
