"""From a path to what an engine is made of: the model in memory, its tokenizer and its picture processor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from owl_fast.checkpoints import load_model, open_source
from owl_fast.checkpoints.folder import WeightFolder
from owl_fast.config import Quantization
from owl_fast.engine.onnx_vision import OnnxFile
from owl_fast.engine.placement import pick_device, pick_dtype
from owl_fast.engine.plan import AUTO, NONE, Setup, choose
from owl_fast.errors import CheckpointError, ParameterError
from owl_fast.hub import local_path
from owl_fast.images import ImageProcessor
from owl_fast.lora import read_base
from owl_fast.models.owl import Owl
from owl_fast.quantization.whole import lay_out_
from owl_fast.tokenizer import Tokenizer

BUNDLED = Path(__file__).resolve().parent.parent / "assets" / "owl-nano"


class Opened(NamedTuple):
    """weights: the files the model was read from. adapter: still to be loaded, for every request."""

    model: Owl
    tokenizer: Tokenizer
    processor: ImageProcessor
    weights: WeightFolder
    adapter: str | Path | None


def open_model(
    path: str | Path | None,
    *,
    device: str | torch.device,
    dtype: str | torch.dtype,
    quant: str | None,
    quant_vision: str | None,
    vision: str | None,
    sizes: Mapping[str, Any],
    adapter: str | Path | None,
    progress: Callable[[int, int], None] | None,
    allow_nonfinite: bool,
    **told: Any,
) -> Opened:
    """The model at a path, of a hub id, or the bundled one; arguments as for Engine.from_pretrained.

    sizes: fields of Setup. told: what the files do not tell (see open_source). An adapter folder opened as
    the model is the adapter of its base.
    """
    folder = BUNDLED if path is None else local_path(path)
    if path is None and not folder.is_dir():
        raise CheckpointError("the bundled model owl-nano is not in this installation; give a model folder")
    place = pick_device(device)
    source = open_source(folder, **told)
    file = None if vision is None else OnnxFile.open(vision)
    if file is not None:
        if quant_vision not in (None, NONE):
            raise ParameterError(
                f"quant_vision {quant_vision!r} came, and {vision} is held as it was exported"
            )
        file.check(source)
    if adapter is not None and source.adapter is not None:
        raise ParameterError(f"{path} is an adapter itself; name its base as the model to use another")
    tokenizer, processor = source.tokenizer(), source.processor()
    kind = pick_dtype(dtype, place, source.config)
    setup = Setup(place, kind, onnx=file, **sizes)
    setup.blocks(source.config)  # an error here, rather than after the weights are there
    adapter = adapter or source.adapter
    if source.config.quantization is None:
        quant, quant_vision = _as_trained(adapter, quant, quant_vision)
    config = choose(source.config, setup, quant, quant_vision)
    model = load_model(
        replace(source, adapter=None),
        dtype=kind,
        quantization=config.quantization,
        device=place,
        progress=progress,
        allow_nonfinite=allow_nonfinite,
        without=() if file is None else file.modules,
    )
    if file is not None:
        file.put_into(model)
    lay_out_(model)
    return Opened(model, tokenizer, processor, source.weights, adapter)


def _as_trained(
    adapter: str | Path | None, quant: str | None, quant_vision: str | None
) -> tuple[str | None, str | None]:
    """Both as asked for; where nothing is, as the adapter says that its base was held in training."""
    base = None if adapter is None else read_base(Path(local_path(adapter)))
    if base is None or base.quantization is None:
        return quant, quant_vision
    held = Quantization.from_text(base.quantization)
    if quant in (None, AUTO):
        quant = held.scheme or quant
    return quant, quant_vision or held.vision
