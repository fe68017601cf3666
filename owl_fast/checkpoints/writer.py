"""Writing a model folder in Hugging Face layout: whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from torch import Tensor

from owl_fast.checkpoints.folder import FORMATS, INDEX_SUFFIX
from owl_fast.checkpoints.hf import empty_model
from owl_fast.checkpoints.names import slots
from owl_fast.checkpoints.tensorfile import write_tensors
from owl_fast.errors import CheckpointError, UnsupportedError
from owl_fast.models.owl import Owl

SIDE_FILES = (
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "generation_config.json",
)
SHARD_BYTES = 2 << 30  # a .bin shard is held in memory while it is written


def save_model(
    model: Owl,
    folder: str | Path,
    *,
    format: str = "safetensors",
    shard_bytes: int = SHARD_BYTES,
    side_files: str | Path | None = None,
) -> None:
    """Write config.json and the weights under the checkpoint's names; `folder` must be new or empty.

    format: "safetensors" or "bin". shard_bytes: a new file is begun before this size is passed.
    side_files: a model folder whose tokenizer and preprocessor files come along. The folder appears whole
    or not at all. A model with an adapter attached is refused: merge it, or save the adapter.
    """
    if format not in FORMATS:
        raise UnsupportedError(f"format {format!r}: wanted one of {', '.join(FORMATS)}")
    places = slots(empty_model(model.config))
    parameters = dict(model.named_parameters())
    if extra := sorted(parameters.keys() ^ {slot.parameter for slot in places.values()}):
        raise CheckpointError(
            f"{len(extra)} parameters are not those of the plain model ({extra[0]}, ...); "
            "merge the adapter before saving the model"
        )
    tensors = {
        name: parameters[slot.parameter].detach().narrow(0, slot.start, slot.shape[0])
        for name, slot in places.items()
    }
    with whole_folder(Path(folder)) as target:
        write_weights(target, tensors, format, shard_bytes)
        raw = model.config.to_dict()
        if len(dtypes := {tensor.dtype for tensor in tensors.values()}) == 1:
            raw["torch_dtype"] = str(dtypes.pop()).removeprefix("torch.")
        _write_json(target / "config.json", raw)
        if side_files is not None:
            copy_side_files(side_files, target)


def copy_side_files(source: str | Path, target: str | Path) -> tuple[str, ...]:
    """Copy tokenizer, preprocessor and generation files that `source` has; the names copied."""
    found = tuple(name for name in SIDE_FILES if (Path(source) / name).is_file())
    for name in found:
        shutil.copyfile(Path(source) / name, Path(target) / name)
    return found


def write_weights(folder: Path, tensors: dict[str, Tensor], format: str, shard_bytes: int) -> None:
    """Weight files of one format; an index beside them when there are several."""
    stem, ending = FORMATS[format]
    shards: list[dict[str, Tensor]] = [{}]
    room = shard_bytes
    for name, tensor in tensors.items():
        if shards[-1] and tensor.nbytes > room:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = tensor
        room -= tensor.nbytes
    if len(shards) == 1:
        write_tensors(folder / (stem + ending), shards[0])
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"{stem}-{number:05d}-of-{len(shards):05d}{ending}"
        write_tensors(folder / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    _write_json(
        folder / (stem + ending + INDEX_SUFFIX),
        {"metadata": {"total_size": total}, "weight_map": weight_map},
    )


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` that takes its place, on disk for good, when the block ends well."""
    folder = folder.resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: exists and is not an empty folder; choose a new one")
    partial = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        for file in partial.iterdir():
            _sync(file)
        _sync(partial)
        partial.rename(folder)
        _sync(folder.parent)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
