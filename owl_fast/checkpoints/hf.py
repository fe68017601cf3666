"""Loading a model folder in Hugging Face layout: config.json and weights in one file or shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from owl_fast.checkpoints.folder import WeightFolder
from owl_fast.checkpoints.names import HF_NAMES, map_name, views
from owl_fast.checkpoints.tensorfile import check_values
from owl_fast.config import OwlConfig
from owl_fast.errors import CheckpointError, UnsupportedError
from owl_fast.models.owl import Owl

MODEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def load_model(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    allow_nonfinite: bool = False,
) -> Owl:
    """The model of a folder, in eval mode, without gradients.

    dtype: float32, bfloat16 or float16; None keeps the file's. progress(bytes done, bytes in all) is called
    after each tensor. Weights are mapped and copied tensor by tensor: anonymous memory stays near the size
    of the model in its dtype. Raises CheckpointError unless every tensor is there once, in the shape
    config.json asks for, and every tensor of the files is used or knowingly dropped (names.HF_NAMES); when
    the bytes do not match the checksums of the files or of the folder's manifest; and, unless
    allow_nonfinite, when a weight is NaN or infinite.
    """
    if dtype is not None and dtype not in MODEL_DTYPES:
        raise UnsupportedError(f"dtype {dtype}: wanted one of {', '.join(map(str, MODEL_DTYPES))}")
    path = Path(path)
    config = OwlConfig.from_file(path / "config.json")
    folder = WeightFolder.open(path)
    model = empty_model(config)
    _check(folder, {name: tuple(view.shape) for name, view in views(model).items()})
    # Memory that is reserved is not resident: pages appear as the copies below fill them.
    model = model.to(dtype or _common_dtype(folder)).to_empty(device=device).requires_grad_(False).eval()
    _fill(model, folder, progress, allow_nonfinite)
    return model


def empty_model(config: OwlConfig) -> Owl:
    """The model without memory: names, shapes and modules (all parameters on the meta device)."""
    with torch.device("meta"):
        return Owl(config)


def _check(folder: WeightFolder, shapes: dict[str, tuple[int, ...]]) -> None:
    """Names and shapes of the files against those the config asks for; nothing is read yet."""
    wanted = dict(shapes)
    for name, entry in folder.entries.items():
        target = map_name(HF_NAMES, name)
        if target is None:
            continue
        shape = wanted.pop(target, None)
        where = f"{folder.path / entry.file}: tensor {name}"
        if shape is None:
            raise CheckpointError(f"{where} has no place in the model config.json describes")
        if entry.info.shape != shape:
            raise CheckpointError(
                f"{where} has shape {entry.info.shape}; config.json asks for {shape}. "
                "The config is not this checkpoint's, or the file is not this model's"
            )
        if entry.info.dtype not in MODEL_DTYPES:
            raise CheckpointError(f"{where} has dtype {entry.info.dtype}; wanted a floating-point weight")
    if wanted:
        some = ", ".join(list(wanted)[:3])
        raise CheckpointError(
            f"{folder.path}: {len(wanted)} tensors are missing that config.json asks for: {some}"
            f"{', ...' if len(wanted) > 3 else ''}"
        )


def _common_dtype(folder: WeightFolder) -> torch.dtype:
    found = {
        entry.info.dtype: name
        for name, entry in folder.entries.items()
        if map_name(HF_NAMES, name) is not None
    }
    if len(found) > 1:
        listed = ", ".join(f"{dtype} ({name})" for dtype, name in found.items())
        raise CheckpointError(f"{folder.path}: weights of several dtypes: {listed}; say which dtype to load")
    return next(iter(found))


def _fill(
    model: Owl, folder: WeightFolder, progress: Callable[[int, int], None] | None, allow_nonfinite: bool
) -> None:
    targets = views(model)
    done, total = 0, folder.nbytes
    for name, tensor in folder.tensors():
        if (target := map_name(HF_NAMES, name)) is not None:
            targets[target].copy_(tensor)
            if not allow_nonfinite:
                check_values(targets[target], f"{folder.path / folder.entries[name].file}: tensor {name}")
        done += folder.entries[name].info.nbytes
        if progress is not None:
            progress(done, total)
