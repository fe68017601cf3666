"""ONNX Runtime over the files that export/ makes of our vision tower and abstractor."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

from torch import Tensor

from benchmarks.timing import Contender, Timer, wall_timer
from owl_fast.engine.onnx_vision import Session, check_packages
from owl_fast.export.int8 import write_int8
from owl_fast.export.onnx_file import PACKAGES, write_onnx
from owl_fast.export.pictures import PicturePart
from owl_fast.models.owl import Owl

NAME, INT8 = "ONNX Runtime fp32", "ONNX Runtime int8"


def encoder(model: Owl, pixels: Tensor, name: str = NAME) -> Session:
    """In float32, or in int8 calibrated on these pixels alone, as speed does not depend on them; on as many
    threads as torch has. What was exported is in memory alone."""
    check_packages(*PACKAGES)
    part = copy.deepcopy(PicturePart(model, "vision+abstractor")).float()
    with tempfile.TemporaryDirectory() as folder:
        if name == INT8:
            path = write_int8(part, Path(folder), {}, [pixels.float()], lambda done, total: None)
        else:
            path = write_onnx(part, Path(folder), {})
        del part  # a 7B model leaves little room beside it
        return Session(path)


def contender(model: Owl, pixels: Tensor, name: str = NAME) -> Contender:
    """What a race takes; pixels (1, 3, S, S)."""
    if pixels.is_cuda:
        return "compared on CPUs"

    def prepare() -> tuple[Timer, str]:
        run = encoder(model, pixels, name)
        return wall_timer(lambda: run(pixels), pixels.device)

    return prepare
