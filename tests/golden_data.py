"""The reference numbers of the original implementation (tests/golden/README.md), loaded for tests."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from owl_fast.checkpoints import load_model
from owl_fast.models.owl import Owl

GOLDEN = Path(__file__).parent / "golden"
NAMES = ("tiny", "micro")


@dataclass(frozen=True)
class Golden:
    """One reference model: its checkpoint folder and the numbers the original gave."""

    name: str

    @property
    def checkpoint(self) -> Path:
        return GOLDEN / self.name / "checkpoint"

    @property
    def adapter(self) -> Path:
        return GOLDEN / self.name / "lora_adapter"

    @functools.cached_property
    def manifest(self) -> dict[str, Any]:
        return json.loads((GOLDEN / self.name / "golden/manifest.json").read_text())

    def meta(self, case: str) -> dict[str, Any]:
        return self.manifest["files"][case]["meta"]

    def tensors(self, case: str) -> dict[str, Tensor]:
        return load_file(GOLDEN / self.name / "golden" / f"{case}.safetensors")

    def pixels(self, indices: list[int] | range) -> Tensor:
        """The processor's output for images of these numbers: (n, 3, S, S)."""
        stored = self.tensors("preprocess")
        return torch.stack([stored[f"pixel_values.{i}"] for i in indices])

    def sequences(self, case: str) -> list[list[int]]:
        """The case's rows without their right padding; -1 marks picture rows."""
        stored = self.tensors(case)
        lengths = stored["attention_mask"].sum(1).int().tolist()
        return [row[:length].tolist() for row, length in zip(stored["input_ids"], lengths, strict=True)]

    def fresh_model(self, dtype: torch.dtype = torch.float32) -> Owl:
        return load_model(self.checkpoint, dtype=dtype)


def image_files() -> list[Path]:
    return sorted((GOLDEN / "images").glob("*.png"))
