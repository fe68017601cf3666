"""Filling a model from its files: strict both ways, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from owl_fast.checkpoints.folder import WeightFolder
from owl_fast.checkpoints.layout import Place
from owl_fast.checkpoints.names import PACKED, views
from owl_fast.checkpoints.packing import Factors, PackedPlace, fill, packed_places
from owl_fast.checkpoints.peft import Update
from owl_fast.checkpoints.source import Source, open_source
from owl_fast.checkpoints.tensorfile import TensorFile, check_values, open_tensors
from owl_fast.config import OwlConfig, Quantization
from owl_fast.errors import CheckpointError, UnsupportedError
from owl_fast.models.owl import Owl

MODEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def load_model(
    source: str | Path | Source,
    *,
    dtype: torch.dtype | None = None,
    quantization: Quantization | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    allow_nonfinite: bool = False,
    without: Collection[str] = (),
) -> Owl:
    """The model of a source, or of whatever open_source finds at a path, in eval mode, without gradients.

    dtype: float32, bfloat16 or float16; None keeps the file's. quantization: of weights that the files hold
    as they are; None keeps them so. Quantized files stay what they are, and another quantization of them is
    refused. progress(bytes done, bytes in all) is called after each tensor. Weights are mapped and copied, or
    quantized, tensor by tensor: anonymous memory stays near the size of the model as it is held. without:
    names of Owl's parts that stay on the meta device, without memory.

    Raises CheckpointError unless every tensor is there once, in the shape the config asks for, and every
    tensor of the files is used or knowingly dropped (Layout.names); when the bytes do not match the checksums
    of the files or of the folder's manifest; and when a weight is NaN or infinite, unless allow_nonfinite and
    it is not to be quantized.
    """
    if dtype is not None and dtype not in MODEL_DTYPES:
        raise UnsupportedError(f"dtype {dtype}: wanted one of {', '.join(map(str, MODEL_DTYPES))}")
    if not isinstance(source, Source):
        source = open_source(source)
    config = _quantized(source, quantization)
    _check(source, source.layout.places(views(empty_model(source.config)), source.config))
    model = empty_model(config)
    model = model.to(dtype or common_dtype(source)).requires_grad_(False).eval()
    # Memory that is reserved is not resident: pages appear as the copies below fill them.
    for name, part in model.named_children():
        if name not in without:
            part.to_empty(device=device)
    model.to_empty(device=device, recurse=False)
    _fill(source, model, progress, allow_nonfinite)
    if source.adapter is not None:
        from owl_fast.lora import load_adapter  # which reads its files through this package

        load_adapter(model, source.adapter)
    return model


def empty_model(config: OwlConfig) -> Owl:
    """The model without memory: names, shapes and modules (all parameters on the meta device)."""
    with torch.device("meta"):
        return Owl(config)


def _quantized(source: Source, wanted: Quantization | None) -> OwlConfig:
    """The source's config with the weights held as wanted."""
    held = source.config.quantization
    if wanted is None or wanted == held:
        return source.config
    wanted.validate()
    if held is not None:
        raise UnsupportedError(
            f"{source.path}: holds its weights as {held}, and {wanted} is asked for; "
            "quantize the original model"
        )
    return replace(source.config, quantization=wanted)


def _places(source: Source, model: Owl) -> dict[str, Place | PackedPlace]:
    """The place of every tensor of the files by the model's name."""
    held = views(model)
    if model.config.quantization == source.config.quantization:
        return {**source.layout.places(held, source.config)}
    dense = {name: view for name, view in held.items() if not name.endswith(PACKED)}
    return {**source.layout.places(dense, source.config), **packed_places(source.layout, model)}


def _check(source: Source, places: Mapping[str, Place]) -> None:
    """Names, shapes and dtypes of the files against what the config asks for; nothing is read yet."""
    missing = dict(places)
    place: Place | None = None
    for name, entry in source.weights.entries.items():
        where = f"{source.weights.path / entry.file}: tensor {name}"
        target = source.targets.get(name, "")  # halves of updates were checked against their weights
        if target:
            place = missing.pop(target, None)
            if place is None:
                raise CheckpointError(f"{where} has no place in the model the config describes")
            if entry.info.shape != place.shape:
                raise CheckpointError(
                    f"{where} has shape {entry.info.shape}; the config asks for {place.shape}. "
                    "The config is not this checkpoint's, or the file is not this model's"
                )
        if target and target.endswith(PACKED):
            assert place is not None
            if entry.info.dtype != place.view.dtype:
                raise CheckpointError(f"{where} has dtype {entry.info.dtype}; wanted {place.view.dtype}")
        elif target is not None and entry.info.dtype not in MODEL_DTYPES:
            raise CheckpointError(f"{where} has dtype {entry.info.dtype}; wanted a floating-point weight")
    if missing:
        some = ", ".join(list(missing)[:3])
        raise CheckpointError(
            f"{source.path}: {len(missing)} tensors are missing that the config asks for: {some}"
            f"{', ...' if len(missing) > 3 else ''}"
        )


def common_dtype(source: Source) -> torch.dtype:
    """Of a source's weights, quantized ones aside; CheckpointError if they are of several."""
    found = {
        source.weights.entries[name].info.dtype: name
        for name, to in source.targets.items()
        if to and not to.endswith(PACKED)
    }
    if len(found) > 1:
        listed = ", ".join(f"{dtype} ({name})" for dtype, name in found.items())
        raise CheckpointError(f"{source.path}: weights of several dtypes: {listed}; say which dtype to load")
    return next(iter(found))


def _fill(
    source: Source,
    model: Owl,
    progress: Callable[[int, int], None] | None,
    allow_nonfinite: bool,
) -> None:
    done, total = 0, source.weights.nbytes
    places = _places(source, model)
    with ExitStack() as stack:
        halves = _Halves(source.weights, source.alpha, stack)
        for name, tensor in source.weights.tensors():
            entry = source.weights.entries[name]
            if (target := source.targets.get(name)) and not (place := places[target])[0].is_meta:
                where = f"{source.weights.path / entry.file}: tensor {name}"
                update = source.updates.get(target)
                factors = None if update is None else halves.read(update)
                if isinstance(place, PackedPlace):
                    place.fill(tensor, factors, where)
                else:
                    fill(place.view, tensor, factors)
                    if not allow_nonfinite and place.view.is_floating_point():
                        check_values(place.view, where)
            done += entry.info.nbytes
            if progress is not None:
                progress(done, total)


class _Halves:
    """The halves of low-rank updates, wherever in the files they are; mapped until the stack closes. Bytes
    are compared by the pass over all tensors."""

    def __init__(self, weights: WeightFolder, alpha: float, stack: ExitStack) -> None:
        self._weights, self._alpha, self._stack = weights, alpha, stack
        self._opened: dict[str, TensorFile] = {}

    def read(self, update: Update) -> Factors:
        """B, scaled by alpha / rank, and A, in float32."""
        a, b = self._read(update.a).float(), self._read(update.b).float()
        return Factors(b * (self._alpha / update.rank), a)

    def _read(self, name: str) -> Tensor:
        file = self._weights.entries[name].file
        if file not in self._opened:
            opened = open_tensors(self._weights.path / file, check=False)
            self._opened[file] = self._stack.enter_context(opened)
        return self._opened[file].read(name)
