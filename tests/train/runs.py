"""A small run of the command, and its data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from owl_fast.train.command import main
from tests.golden_data import Golden

MODEL = Golden("micro").checkpoint


def write_data(folder: Path) -> Path:
    """Twelve conversations, nine of them about pictures, and nine captions."""
    noise = np.random.default_rng(0)
    mixed, captions = [], []
    for number in range(9):
        pixels = noise.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        picture = {"type": "image_url", "image_url": {"url": f"{number}.png"}}
        asked = {"role": "user", "content": [picture, {"type": "text", "text": "a b?"}]}
        mixed.append({"messages": [asked, {"role": "assistant", "content": f"c d {number}"}]})
        captions.append({"image": f"{number}.png", "caption": f"a c {number}"})
    for number in range(3):
        asked = {"role": "user", "content": f"b {number}"}
        mixed.append({"messages": [asked, {"role": "assistant", "content": "d a"}]})
    for name, rows in (("mixed", mixed), ("captions", captions)):
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
    return folder


def command(data: Path, out: Path, *more: str, stage: int = 2, steps: int = 4) -> list[str]:
    name = "mixed" if stage == 2 else "captions"
    return [
        *("--stage", str(stage), "--model", str(MODEL), "--data", str(data / f"{name}.jsonl")),
        *("--out", str(out), "--max-steps", str(steps), "--batch", "4", "--warmup", "1", "--lr", "1e-3"),
        *("--device", "cpu", "--workers", "0", "--save-every", "2", "--eval-every", "0", "--plain", *more),
    ]


def run(data: Path, out: Path, *more: str, stage: int = 2, steps: int = 4) -> int:
    return main(command(data, out, *more, stage=stage, steps=steps))
