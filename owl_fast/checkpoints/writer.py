"""Writing a model folder in Hugging Face layout: whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from owl_fast import ops
from owl_fast.checkpoints.folder import FORMATS, INDEX_SUFFIX
from owl_fast.checkpoints.load import empty_model
from owl_fast.checkpoints.manifest import write_manifest
from owl_fast.checkpoints.mapped import TensorInfo
from owl_fast.checkpoints.names import PACKED, slots, views
from owl_fast.checkpoints.tensorfile import write_tensors
from owl_fast.errors import CheckpointError, UnsupportedError
from owl_fast.files import is_there, sync, write_json
from owl_fast.models.layers import PackedWeight
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
    tokenizer: bytes | None = None,
    preprocessor: Mapping[str, Any] | None = None,
    change: Callable[[str, Tensor], Tensor] | None = None,
) -> None:
    """Write config.json and the weights under the checkpoint's names; `folder` must be new or empty.

    format: "safetensors" or "bin". shard_bytes: a new file is begun before this size is passed.
    side_files: a model folder whose tokenizer and preprocessor files come along; tokenizer, preprocessor: the
    content of these two where it is at hand. change(name, tensor): what is written instead of a tensor, in
    its shape and dtype; quantized weights are then written dense, in the model's dtype. The folder appears
    whole or not at all. A model with an adapter attached is refused: merge it, or save the adapter.
    """
    with whole_folder(folder) as target:
        write_model(
            model,
            target,
            format=format,
            shard_bytes=shard_bytes,
            side_files=side_files,
            tokenizer=tokenizer,
            preprocessor=preprocessor,
            change=change,
        )


def write_model(
    model: Owl,
    target: Path,
    *,
    format: str = "safetensors",
    shard_bytes: int = SHARD_BYTES,
    side_files: str | Path | None = None,
    tokenizer: bytes | None = None,
    preprocessor: Mapping[str, Any] | None = None,
    change: Callable[[str, Tensor], Tensor] | None = None,
) -> None:
    """What save_model writes, into a folder that is there (of whole_folder)."""
    if format not in FORMATS:
        raise UnsupportedError(f"format {format!r}: wanted one of {', '.join(FORMATS)}")
    plain = {name for name, _ in empty_model(model.config).named_parameters()}
    if extra := sorted(plain ^ {name for name, _ in model.named_parameters()}):
        raise CheckpointError(
            f"{len(extra)} parameters are not those of the plain model ({extra[0]}, ...); "
            "merge the adapter before saving the model"
        )
    config = model.config if change is None else replace(model.config, quantization=None)
    if config.quantization is not None and format != "safetensors":
        raise UnsupportedError(f"format {format!r}: quantized weights are written as safetensors alone")
    infos, tensors = held_tensors(model, dense=change is not None)
    read = tensors if change is None else lambda name: change(name, tensors(name))
    write_weights(target, infos, read, format=format, shard_bytes=shard_bytes)
    raw = config.to_dict()
    if len(dtypes := {info.dtype for name, info in infos.items() if not name.endswith(PACKED)}) == 1:
        raw["torch_dtype"] = str(dtypes.pop()).removeprefix("torch.")
    write_json(target / "config.json", raw)
    if side_files is not None:
        copy_side_files(side_files, target)
    if tokenizer is not None:
        (target / "tokenizer.model").write_bytes(tokenizer)
    if preprocessor is not None:
        write_json(target / "preprocessor_config.json", preprocessor)


def held_tensors(model: Owl, dense: bool) -> tuple[dict[str, TensorInfo], Callable[[str], Tensor]]:
    """What there is to write, by the checkpoint's names, and each of it by name. dense: quantized weights as
    what they stand for."""
    held, plain = _Held(model), model.config if not dense else replace(model.config, quantization=None)
    infos = {
        name: TensorInfo(tuple(view.shape), held.dtype(name, view))
        for name, view in views(empty_model(plain)).items()
    }
    return infos, held.read_dense if dense else held.read


class _Held:
    """A model's tensors by the checkpoint's names; weights that are laid out are copied back one by one."""

    def __init__(self, model: Owl) -> None:
        self._model, self._views = model, views(model)
        self._slots = slots(empty_model(model.config))
        self._last: tuple[str, ops.Int8Weight | ops.Int4Weight] | None = None

    def dtype(self, name: str, plain: Tensor) -> torch.dtype:
        """plain: the empty model's tensor, whose dtype counts for quantized weights alone."""
        if name in self._views:
            return self._views[name].dtype
        return plain.dtype if name.endswith(PACKED) else self._model.dtype

    def read(self, name: str) -> Tensor:
        if name in self._views:
            return self._views[name]
        weight = self._packed(name.rpartition(".")[0])
        return weight.q if name.endswith(PACKED[0]) else weight.scale

    def read_dense(self, name: str) -> Tensor:
        """A quantized weight as what it stands for."""
        if name in self._slots:
            return self.read(name)
        return ops.dequantize(self._packed(name), self._model.dtype)

    def _packed(self, name: str) -> ops.Int8Weight | ops.Int4Weight:
        """The rows of the quantized weight of this name. Parts of a fused weight are asked for in a row."""
        slot = self._slots[name + ".q"]
        owner = slot.tensor.rpartition(".")[0]
        if self._last is None or self._last[0] != owner:
            module = self._model.get_submodule(owner)
            assert isinstance(module, PackedWeight)
            self._last = owner, module.canonical
        weight, rows = self._last[1], slice(slot.start, slot.start + slot.shape[0])
        return weight._replace(q=weight.q[rows], scale=weight.scale[rows])


def copy_side_files(source: str | Path, target: str | Path) -> tuple[str, ...]:
    """Copy tokenizer, preprocessor and generation files that `source` has; the names copied."""
    found = tuple(name for name in SIDE_FILES if (Path(source) / name).is_file())
    for name in found:
        shutil.copyfile(Path(source) / name, Path(target) / name)
    return found


def write_weights(
    folder: Path,
    infos: Mapping[str, TensorInfo],
    read: Callable[[str], Tensor],
    *,
    format: str = "safetensors",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Weight files of one format, and an index when there are several; read(name) is asked shard by shard."""
    stem, ending = FORMATS[format]
    shards = _plan(infos, shard_bytes)
    if len(shards) == 1:
        write_tensors(folder / (stem + ending), {name: read(name) for name in shards[0]})
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = f"{stem}-{number:05d}-of-{len(shards):05d}{ending}"
        write_tensors(folder / file, {name: read(name) for name in names})
        weight_map |= dict.fromkeys(names, file)
    total = sum(info.nbytes for info in infos.values())
    write_json(
        folder / (stem + ending + INDEX_SUFFIX),
        {"metadata": {"total_size": total}, "weight_map": weight_map},
    )


def _plan(infos: Mapping[str, TensorInfo], shard_bytes: int) -> list[list[str]]:
    """Names per shard, in order; a tensor larger than shard_bytes gets a shard of its own."""
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name, info in infos.items():
        if shards[-1] and info.nbytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= info.nbytes
    return shards


def check_new_file(file: Path) -> None:
    """CheckpointError if anything has this name."""
    if is_there(file):
        raise CheckpointError(f"{file}: exists; choose a new name")


def check_new(folder: Path) -> None:
    """CheckpointError unless there is nothing of this name, or an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: exists and is not an empty folder; choose a new one")


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """A new folder beside `folder` that takes its place, on disk for good, when the block ends well.

    A manifest of its files is added. `folder` must be new or empty; its parents are made. OSErrors in the
    block become CheckpointErrors.
    """
    folder = Path(folder).resolve()
    check_new(folder)
    partial = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        write_manifest(partial)
        for file in partial.iterdir():
            sync(file)
        sync(partial)
        partial.rename(folder)
        sync(folder.parent)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def whole_file(file: Path) -> Iterator[Path]:
    """A name beside `file`: what is written there becomes the file, on disk for good, if the block ends well.

    It must be new; its parents are made. OSErrors in the block become CheckpointErrors.
    """
    check_new_file(file)
    file = file.parent.resolve() / file.name
    partial = file.with_name(f".{file.name}.{uuid4().hex[:8]}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        sync(partial)
        check_new_file(file)  # a rename would replace it
        partial.rename(file)
        sync(file.parent)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):  # there is none, or no place where it could be
            partial.unlink()
