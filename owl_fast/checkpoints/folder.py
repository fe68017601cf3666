"""The weight files of a folder in Hugging Face layout: one file, or shards named by an index."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from owl_fast.checkpoints.manifest import Manifest
from owl_fast.checkpoints.mapped import TensorInfo
from owl_fast.checkpoints.tensorfile import open_tensors
from owl_fast.errors import CheckpointError
from owl_fast.files import is_there, read_json

INDEX_SUFFIX = ".index.json"
# Format -> the single file's stem and ending; shards are STEM-00001-of-0000N.ENDING.
FORMATS = {"safetensors": ("model", ".safetensors"), "bin": ("pytorch_model", ".bin")}


@dataclass(frozen=True)
class Entry:
    """One tensor of the folder and the file that holds it."""

    file: str
    info: TensorInfo


@dataclass(frozen=True)
class WeightFolder:
    """Every tensor of a folder by name; values are read only through tensors()."""

    path: Path
    files: tuple[str, ...]
    entries: dict[str, Entry]

    @classmethod
    def open(cls, path: str | Path) -> WeightFolder:
        """List the folder's tensors; CheckpointError names the file and tensor when something does not fit:
        no or several sets of weights, a file missing or not named by the index, a tensor missing or doubled,
        a file other than the folder's manifest says (weights are compared while tensors() reads them).
        """
        path = Path(path)
        if not path.is_dir():
            raise CheckpointError(f"{path}: no such folder")
        main, present = _main_file(path)
        for file in present:
            check_link(path, path / file)
        if not main.endswith(INDEX_SUFFIX):
            if unused := present - {main}:
                raise CheckpointError(
                    f"{path / min(unused)}: a shard beside {main}; move it out of the folder"
                )
            _check_manifest(path, (main,))
            return cls(path, (main,), _entries(path, main))
        weight_map = _read_index(path / main)
        files = tuple(sorted(set(weight_map.values())))
        for file in files:
            if file not in present:
                name = next(name for name, holder in weight_map.items() if holder == file)
                raise CheckpointError(f"{path / main}: {file} is not in the folder; it should hold {name}")
        if unused := present - set(files) - {main}:
            raise CheckpointError(f"{path / min(unused)}: not named by {main}; move it out of the folder")
        _check_manifest(path, files)
        entries: dict[str, Entry] = {}
        for file in files:
            entries |= _check_shard(path / main, weight_map, file, _entries(path, file))
        return cls(path, files, entries)

    @classmethod
    def of_file(cls, path: Path) -> WeightFolder:
        """One file by itself, whatever else lies beside it; what a manifest there says of it holds."""
        manifest = Manifest.read(path.parent)
        if manifest is not None and path.name in manifest.files:
            _check_manifest(path.parent, (path.name,))
        return cls(path.parent, (path.name,), _entries(path.parent, path.name))

    @property
    def nbytes(self) -> int:
        return sum(entry.info.nbytes for entry in self.entries.values())

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Name and memory-mapped tensor, file by file; a file is released before the next one is opened."""
        for file in self.files:
            with open_tensors(self.path / file) as opened:
                for name in opened.infos:
                    yield name, opened.read(name)


def _main_file(path: Path) -> tuple[str, set[str]]:
    """The index or single weight file, and all weight files of the folder."""
    present, mains = set(), []
    for stem, ending in FORMATS.values():
        single = stem + ending
        shards = {file.name for file in path.glob(f"{stem}-*{ending}")}
        heads = [name for name in (single + INDEX_SUFFIX, single) if is_there(path / name)]
        if shards and not heads:
            raise CheckpointError(f"{path / min(shards)}: a shard without its {single + INDEX_SUFFIX}")
        present |= shards | set(heads)
        mains += heads
        if mains and _blobs(path) is not None:
            break  # a repository of the hub may hold its weights in both formats
    if not mains:
        wanted = " or ".join(stem + ending for stem, ending in FORMATS.values())
        raise CheckpointError(f"{path}: no weights; wanted {wanted}, or the {INDEX_SUFFIX} of its shards")
    if len(mains) > 1:
        raise CheckpointError(
            f"{path}: holds several sets of weights ({', '.join(mains)}) and nothing says which is meant; "
            "move all but one out of the folder"
        )
    return mains[0], present


def _read_index(path: Path) -> dict[str, str]:
    """weight_map of an index: tensor name -> basename of a file of the same format."""
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path}: wanted an object with a filled weight_map (tensor name -> file)")
    ending = path.name.removesuffix(INDEX_SUFFIX).rpartition(".")[2]
    for name, file in weight_map.items():
        if (
            not name.isprintable()
            or not isinstance(file, str)
            or set(file) & set("/\\\0")
            or not file.endswith(f".{ending}")
        ):
            raise CheckpointError(
                f"{path}: tensor {name!r:.120} is said to be in {file!r:.120}; "
                f"wanted a printable name and a .{ending} file of the same folder, without a path"
            )
    return weight_map


def _check_manifest(path: Path, weights: tuple[str, ...]) -> None:
    """A folder of ours holds what it was written with; the weights' bytes are compared when they are read."""
    if (manifest := Manifest.read(path)) is not None:
        for file in weights:
            manifest.check_size(file)
        manifest.check(but=weights)


def check_link(folder: Path, file: Path) -> None:
    """CheckpointError for a link that leaves the folder, unless to the blobs of its own repository in the
    cache of the model hub."""
    target = Path(os.path.realpath(file))
    allowed = (folder.resolve(), _blobs(folder))
    if file.is_symlink() and not any(target.is_relative_to(place) for place in allowed if place):
        raise CheckpointError(f"{file}: a link to {target}, outside the folder; put the file itself there")


def _blobs(folder: Path) -> Path | None:
    """Where the files are that a snapshot in the cache of the model hub links to; None for other folders."""
    home = folder.resolve()
    return home.parent.parent / "blobs" if home.parent.name == "snapshots" else None


def _entries(path: Path, file: str) -> dict[str, Entry]:
    with open_tensors(path / file) as opened:
        return {name: Entry(file, info) for name, info in opened.infos.items()}


def _check_shard(
    index: Path, weight_map: dict[str, str], file: str, entries: dict[str, Entry]
) -> dict[str, Entry]:
    """A shard holds exactly the tensors the index places in it."""
    for name in entries:
        holder = weight_map.get(name)
        if holder != file:
            reason = f"{index.name} places it in {holder}" if holder else f"{index.name} does not list it"
            raise CheckpointError(f"{index.parent / file}: holds tensor {name}, but {reason}")
    for name, holder in weight_map.items():
        if holder == file and name not in entries:
            raise CheckpointError(
                f"{index.parent / file}: tensor {name} is missing; {index.name} places it here"
            )
    return entries
