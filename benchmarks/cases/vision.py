"""vision: one picture, from pixels on the device to the rows that stand for it in a prompt."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

from torch import Tensor

from benchmarks.harness import Row
from benchmarks.models import engine, part_of, picture_effort, pixels_of, title
from benchmarks.peers import chosen, compiled, onnx_runtime, plain
from benchmarks.timing import Contender, race, wall_timer
from owl_fast.engine.placement import pick_device
from owl_fast.models.owl import Owl

SECONDS = 0.5


def run(args: argparse.Namespace) -> list[Row]:
    device = pick_device(args.device)
    model = part_of(args.model, device, layers=1, pictures=True)
    int8 = part_of(args.model, device, layers=1, pictures=True, vision="int8")
    pixels = pixels_of(model)
    encode = encoder(model, pixels)
    contenders: dict[str, Contender] = {
        "owl_fast": partial(wall_timer, encode, device),
        "owl_fast, vision tower int8": partial(wall_timer, encoder(int8, pixels), device),
        plain.NAME: partial(wall_timer, plain.plain(encode), device),
        compiled.NAME: compiled.contender(lambda: model.encode_images(pixels[None]), device, args.no_compile),
        onnx_runtime.NAME: onnx_runtime.contender(model, pixels[None]),
        onnx_runtime.INT8: onnx_runtime.contender(model, pixels[None], onnx_runtime.INT8),
    }
    where = "vision", f"{title(args.model, model)} 1 picture", "latency"
    return race(where, device, picture_effort(model), chosen(contenders, args), SECONDS)


def encoder(model: Owl, pixels: Tensor) -> Callable[[], Tensor]:
    """As the engine does it, past its front door: there pictures come from the CPU."""
    runner = engine(model, max_context=128)._runner
    return lambda: runner.encode_images([pixels])
