"""Filling a model from its files: strict both ways, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from owl_fast.checkpoints.folder import WeightFolder
from owl_fast.checkpoints.layout import Place
from owl_fast.checkpoints.names import views
from owl_fast.checkpoints.peft import Update
from owl_fast.checkpoints.source import Source, open_source
from owl_fast.checkpoints.tensorfile import TensorFile, check_values, open_tensors
from owl_fast.config import OwlConfig
from owl_fast.errors import CheckpointError, UnsupportedError
from owl_fast.models.owl import Owl

MODEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MERGED_AT_ONCE = 1 << 18  # float32 numbers of a weight in memory while an update is merged into it


def load_model(
    source: str | Path | Source,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    allow_nonfinite: bool = False,
) -> Owl:
    """The model of a source, or of whatever open_source finds at a path, in eval mode, without gradients.

    dtype: float32, bfloat16 or float16; None keeps the file's. progress(bytes done, bytes in all) is called
    after each tensor. Weights are mapped and copied tensor by tensor: anonymous memory stays near the size
    of the model in its dtype. Raises CheckpointError unless every tensor is there once, in the shape
    the config asks for, and every tensor of the files is used or knowingly dropped (Layout.names); when the
    bytes do not match the checksums of the files or of the folder's manifest; and, unless allow_nonfinite,
    when a weight is NaN or infinite.
    """
    if dtype is not None and dtype not in MODEL_DTYPES:
        raise UnsupportedError(f"dtype {dtype}: wanted one of {', '.join(map(str, MODEL_DTYPES))}")
    if not isinstance(source, Source):
        source = open_source(source)
    model = empty_model(source.config)
    _check(source, _places(source, model))
    # Memory that is reserved is not resident: pages appear as the copies below fill them.
    model = model.to(dtype or _common_dtype(source)).to_empty(device=device).requires_grad_(False).eval()
    _fill(source, _places(source, model), progress, allow_nonfinite)
    if source.adapter is not None:
        from owl_fast.lora import load_adapter  # which reads its files through this package

        load_adapter(model, source.adapter)
    return model


def empty_model(config: OwlConfig) -> Owl:
    """The model without memory: names, shapes and modules (all parameters on the meta device)."""
    with torch.device("meta"):
        return Owl(config)


def _places(source: Source, model: Owl) -> dict[str, Place]:
    return source.layout.places(views(model), source.config)


def _check(source: Source, places: Mapping[str, Place]) -> None:
    """Names, shapes and dtypes of the files against what the config asks for; nothing is read yet."""
    missing = dict(places)
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
        if target is not None and entry.info.dtype not in MODEL_DTYPES:
            raise CheckpointError(f"{where} has dtype {entry.info.dtype}; wanted a floating-point weight")
    if missing:
        some = ", ".join(list(missing)[:3])
        raise CheckpointError(
            f"{source.path}: {len(missing)} tensors are missing that the config asks for: {some}"
            f"{', ...' if len(missing) > 3 else ''}"
        )


def _common_dtype(source: Source) -> torch.dtype:
    found = {source.weights.entries[name].info.dtype: name for name, to in source.targets.items() if to}
    if len(found) > 1:
        listed = ", ".join(f"{dtype} ({name})" for dtype, name in found.items())
        raise CheckpointError(f"{source.path}: weights of several dtypes: {listed}; say which dtype to load")
    return next(iter(found))


def _fill(
    source: Source,
    places: Mapping[str, Place],
    progress: Callable[[int, int], None] | None,
    allow_nonfinite: bool,
) -> None:
    done, total = 0, source.weights.nbytes
    with ExitStack() as stack:
        halves = _Halves(source.weights, stack)
        for name, tensor in source.weights.tensors():
            entry = source.weights.entries[name]
            if target := source.targets.get(name):
                view = places[target].view
                tensor = tensor.reshape(view.shape)
                if update := source.updates.get(target):
                    halves.merge(tensor, update, source.alpha, view)
                else:
                    view.copy_(tensor)
                if not allow_nonfinite:
                    check_values(view, f"{source.weights.path / entry.file}: tensor {name}")
            done += entry.info.nbytes
            if progress is not None:
                progress(done, total)


class _Halves:
    """The halves of low-rank updates, wherever in the files they are; mapped until the stack closes. Bytes
    are compared by the pass over all tensors."""

    def __init__(self, weights: WeightFolder, stack: ExitStack) -> None:
        self._weights, self._stack = weights, stack
        self._opened: dict[str, TensorFile] = {}

    def merge(self, weight: Tensor, update: Update, alpha: float, view: Tensor) -> None:
        """view = weight + (alpha / rank) B A, summed in float32 and rounded once; some rows at a time."""
        a, b = self._read(update.a).float(), self._read(update.b).float()
        b = b.reshape(*view.shape[:-1], update.rank) * (alpha / update.rank)
        rows = max(1, MERGED_AT_ONCE // view[0].numel())
        blocks = (torch.split(x, rows) for x in (view, weight, b))
        for target, base, half in zip(*blocks, strict=True):
            target.copy_((half @ a).add_(base))

    def _read(self, name: str) -> Tensor:
        file = self._weights.entries[name].file
        if file not in self._opened:
            opened = open_tensors(self._weights.path / file, check=False)
            self._opened[file] = self._stack.enter_context(opened)
        return self._opened[file].read(name)
