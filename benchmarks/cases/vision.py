"""vision: one picture, from pixels on the device to the rows that stand for it in a prompt."""

from __future__ import annotations

import argparse
from functools import partial

from torch import Tensor

from benchmarks.harness import Row
from benchmarks.models import engine, picture_effort, pixels_of, random_model, title
from benchmarks.peers import compiled, onnx_runtime, plain
from benchmarks.timing import Contender, race, wall_timer
from owl_fast.engine.placement import pick_device

SECONDS = 0.5


def run(args: argparse.Namespace) -> list[Row]:
    device = pick_device(args.device)
    model = random_model(args.model, device)
    pixels = pixels_of(model)
    runner = engine(model, max_context=128)._runner  # its pictures come from the CPU otherwise

    def encode() -> Tensor:
        return runner.encode_images([pixels])

    contenders: dict[str, Contender] = {
        "owl_fast": partial(wall_timer, encode, device),
        plain.NAME: partial(wall_timer, plain.plain(encode), device),
        compiled.NAME: compiled.contender(lambda: model.encode_images(pixels[None]), device, args.no_compile),
        onnx_runtime.NAME: onnx_runtime.contender(model, pixels[None]),
    }
    where = "vision", f"{title(args.model, model)} 1 picture", "latency"
    return race(where, device, picture_effort(model), contenders, SECONDS)
