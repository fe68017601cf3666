"""Models that are exported by tests, through the command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from owl_fast.checkpoints import load_model, open_source
from owl_fast.engine.onnx_vision import FILE
from owl_fast.engine.opening import BUNDLED
from owl_fast.export import onnx as command
from owl_fast.export.pictures import PicturePart
from owl_fast.images import ImageProcessor
from tests.golden_data import FirstRelease, Golden, image_files

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@dataclass(frozen=True)
class Model:
    """One of the small models, and the flags its files need."""

    path: Path
    flags: tuple[str, ...] = ()

    def reference(self, part: str) -> PicturePart:
        heads = {name[2:].replace("-", "_"): int(n) for name, n in zip(*[iter(self.flags)] * 2, strict=True)}
        return PicturePart(load_model(open_source(self.path, **heads), dtype=torch.float32), part)

    def pictures(self) -> Tensor:
        """Pixels (8, 3, S, S) of eight pictures."""
        files = [*image_files(), *sorted(EXAMPLES.glob("*.png"))]
        size = open_source(self.path).config.vision.image_size
        return torch.stack([ImageProcessor(size)(file) for file in files])

    def export(self, out: Path, *flags: str) -> Path:
        assert command.main([str(self.path), "--out", str(out), "--plain", *self.flags, *flags]) == 0
        return out / FILE


MODELS = {
    "tiny": Model(Golden("tiny").checkpoint),
    "micro": Model(Golden("micro").checkpoint),
    "video": Model(Golden("video_tiny").checkpoint),
    "first-release": Model(FirstRelease().checkpoint, ("--vision-heads", "3", "--abstractor-heads", "2")),
    "owl-nano": Model(BUNDLED),
}
