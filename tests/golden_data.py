"""The reference numbers of the original implementation (tests/golden/README.md), loaded for tests."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from owl_fast.checkpoints import Source, load_model, open_source
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


@dataclass(frozen=True)
class FirstRelease(Golden):
    """The reference model of the first release: one .pth file, told the heads it was made with."""

    name: str = "v0/v0_tiny"

    HEADS: ClassVar[dict[str, int]] = {"vision_heads": 3, "abstractor_heads": 2}

    @property
    def folder(self) -> Path:
        return GOLDEN / self.name

    @property
    def checkpoint(self) -> Path:
        return self.folder / "instruction_tuned.pth"

    @property
    def wrapped(self) -> Path:
        """The same model with low-rank updates, in bfloat16, as PEFT wraps it."""
        return self.folder / "lora_wrapped/pytorch_model.bin"

    def source(self, path: Path | None = None, **options: Any) -> Source:
        return open_source(path or self.checkpoint, **(self.HEADS | options))

    def fresh_model(self, dtype: torch.dtype = torch.float32) -> Owl:
        return load_model(self.source(), dtype=dtype)


@dataclass(frozen=True)
class VideoRelease(Golden):
    """The reference model of the video release; its inputs are made-up pixels, stored with the results."""

    name: str = "video_tiny"

    @functools.cached_property
    def picture(self) -> Tensor:
        """(3, S, S)."""
        return self.tensors("vision")["pixel_values"][0]

    @functools.cached_property
    def frames(self) -> Tensor:
        """(T, 3, S, S); the original puts time behind the colours."""
        return self.tensors("vision")["video_pixel_values"][0].transpose(0, 1)


# The model's names -> the first release's, written down a second time and the other way round.
_FIRST_RELEASE_NAMES = (
    (r"^(vision_model\.embeddings)\.cls_token$", r"\1.class_embedding"),
    (r"^(vision_model\.embeddings)\.patch_embed\.", r"\1.patch_embedding."),
    (r"^vision_model\.embeddings\.pre_layernorm", "vision_model.pre_layernorm"),
    (r"^(vision_model\..*)\.input_layernorm", r"\1.layer_norm1"),
    (r"^(vision_model\..*)\.post_attention_layernorm", r"\1.layer_norm2"),
    (r"^(vision_model\..*)\.dense\.", r"\1.out_proj."),
    (r"^(vision_model\..*)\.query_key_value\.(\w+)\[(.)\]$", r"\1.\3_proj.\2"),
)


def first_release_name(name: str) -> str:
    for pattern, replacement in _FIRST_RELEASE_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def assert_same_weights(model: Owl, other: Owl) -> None:
    """Every parameter of one is bit-equal to that of the other, and there are no more."""
    theirs = dict(other.named_parameters())
    assert theirs.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert parameter.dtype == theirs[name].dtype, name
        assert torch.equal(parameter, theirs[name]), name


def image_files() -> list[Path]:
    return sorted((GOLDEN / "images").glob("*.png"))
