"""Loading a model folder in Hugging Face layout: config.json and weights in one file or shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from owl_fast.checkpoints.folder import WeightFolder
from owl_fast.checkpoints.names import HF_NAMES, Slot, map_name, slots
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
) -> Owl:
    """The model of a folder, in eval mode, without gradients.

    dtype: float32, bfloat16 or float16; None keeps the file's. progress(bytes done, bytes in all) is called
    after each tensor. Weights are mapped and copied tensor by tensor: anonymous memory stays near the size
    of the model in its dtype. Raises CheckpointError unless every tensor is there once, in the shape
    config.json asks for, and every tensor of the files is used or knowingly dropped (names.HF_NAMES).
    """
    if dtype is not None and dtype not in MODEL_DTYPES:
        raise UnsupportedError(f"dtype {dtype}: wanted one of {', '.join(map(str, MODEL_DTYPES))}")
    path = Path(path)
    config = OwlConfig.from_file(path / "config.json")
    folder = WeightFolder.open(path)
    model = empty_model(config)
    places = slots(model)
    _check(folder, places)
    dtype = dtype or _common_dtype(folder, places)
    _fill(model, folder, places, dtype, torch.device(device), progress)
    return model.eval()


def empty_model(config: OwlConfig) -> Owl:
    """The model without memory: names, shapes and modules (all parameters on the meta device)."""
    with torch.device("meta"):
        return Owl(config)


def _check(folder: WeightFolder, places: dict[str, Slot]) -> None:
    """Names and shapes of the files against those the config asks for; nothing is read yet."""
    wanted = dict(places)
    for name, entry in folder.entries.items():
        target = map_name(HF_NAMES, name)
        if target is None:
            continue
        slot = wanted.pop(target, None)
        where = f"{folder.path / entry.file}: tensor {name}"
        if slot is None:
            raise CheckpointError(f"{where} has no place in the model config.json describes")
        if entry.info.shape != slot.shape:
            raise CheckpointError(
                f"{where} has shape {entry.info.shape}; config.json asks for {slot.shape}. "
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


def _common_dtype(folder: WeightFolder, places: dict[str, Slot]) -> torch.dtype:
    found = {
        entry.info.dtype: name for name, entry in folder.entries.items() if map_name(HF_NAMES, name) in places
    }
    if len(found) > 1:
        listed = ", ".join(f"{dtype} ({name})" for dtype, name in found.items())
        raise CheckpointError(f"{folder.path}: weights of several dtypes: {listed}; say which dtype to load")
    return next(iter(found))


def _fill(
    model: Owl,
    folder: WeightFolder,
    places: dict[str, Slot],
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[int, int], None] | None,
) -> None:
    done, total = 0, folder.nbytes
    for name, tensor in folder.tensors():
        target = map_name(HF_NAMES, name)
        if target is not None:
            slot = places[target]
            parameter = _materialised(model, slot.parameter, dtype, device)
            parameter.narrow(0, slot.start, slot.shape[0]).copy_(tensor)
        done += folder.entries[name].info.nbytes
        if progress is not None:
            progress(done, total)


def _materialised(model: Owl, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The parameter, given memory when its first part arrives."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    parameter = module.get_parameter(leaf)
    if parameter.is_meta:
        parameter = nn.Parameter(
            torch.empty(parameter.shape, dtype=dtype, device=device), requires_grad=False
        )
        setattr(module, leaf, parameter)
    return parameter
