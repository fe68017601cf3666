"""Weight files: the only place that reads tensors from disk or writes them there.

Files are memory-mapped: a tensor costs no anonymous memory until someone copies it. Pickles are read as
data, never run. Whoever reads values also learns whether they are those that were written: a zip has a CRC-32
for each member, a folder of ours a manifest; that check runs in a thread beside the reading.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from owl_fast.checkpoints.manifest import CHUNK, Manifest
from owl_fast.checkpoints.mapped import MappedFile, TensorInfo, map_file
from owl_fast.checkpoints.safetensors_header import safetensors_places
from owl_fast.checkpoints.torchzip import torch_places
from owl_fast.errors import CheckpointError
from owl_fast.files import file_size

PICKLED = (".bin", ".pt", ".pth")
ENDINGS = f".safetensors, {', '.join(PICKLED)}"
ODD_WEIGHT = 1e4  # far beyond any weight of the released models; a flipped bit of an exponent can give 1e30

logger = logging.getLogger(__name__)


class TensorFile(Protocol):
    """An open weight file. Tensors from read() are views of the mapped file: copy before changing them."""

    infos: dict[str, TensorInfo]

    def read(self, name: str) -> Tensor: ...


@contextmanager
def open_tensors(path: str | Path, check: bool = True) -> Iterator[TensorFile]:
    """Open a .safetensors or torch-zip (.bin, .pt, .pth) file; its structure is checked before it yields.

    Raises CheckpointError naming the file (and the tensor) when it is missing, broken, or holds anything but
    dense tensors of mapped.DTYPES; also when the block ends, if values were read and the file's bytes are not
    those its checksums promise. So believe values only after the block. check: whether to compare the bytes;
    False for a file whose bytes another block compares.
    """
    path = Path(path)
    size = file_size(path)
    if path.suffix != ".safetensors" and path.suffix not in PICKLED:
        raise CheckpointError(f"{path}: unknown weight format; wanted {ENDINGS}")
    data = map_file(path, size)
    view = memoryview(data)
    if path.suffix == ".safetensors":
        places, checking = safetensors_places(path, view), _nothing()
    else:
        places, checking = torch_places(path, view)
    if (manifest := Manifest.read(path.parent)) is not None and path.name in manifest.files:
        manifest.check_size(path.name)
        checking = manifest.hashing(path.name, (view[i : i + CHUNK] for i in range(0, size, CHUNK)))
    file = MappedFile(data, places, checking if check else _nothing())
    try:
        yield file
    except BaseException:
        file.finish(wanted=False)
        raise
    file.finish(wanted=True)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of one file, as copies in memory (for small files such as adapters)."""
    with open_tensors(path) as file:
        return {name: file.read(name).clone() for name in file.infos}


def check_values(weights: Tensor, where: str) -> None:
    """CheckpointError for NaN and infinity, a warning for weights that a damaged exponent would explain."""
    largest = max(abs(bound.item()) for bound in weights.aminmax())
    if not math.isfinite(largest):
        raise CheckpointError(
            f"{where} holds NaN or infinity as {weights.dtype}: the file is damaged, its training failed, or "
            "it needs a dtype of larger range"
        )
    if largest > ODD_WEIGHT:
        logger.warning("%s holds a weight of %.3g; the file may be damaged", where, largest)


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write one file, its format chosen by the ending; tensors may be slices of larger ones."""
    path = Path(path)
    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    try:
        if path.suffix == ".safetensors":
            path.touch()
            mode = path.stat().st_mode
            save_file(plain, path, metadata={"format": "pt"})
            path.chmod(mode)  # save_file leaves 0600: readable by nobody else, whatever the umask
        elif path.suffix in PICKLED:
            # torch.save writes a slice together with the whole weight it belongs to.
            torch.save({name: _alone(tensor) for name, tensor in plain.items()}, path)
        else:
            raise CheckpointError(f"{path}: unknown weight format; wanted {ENDINGS}")
    except (SafetensorError, OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be written ({_brief(error)})") from error


def _nothing() -> Iterator[None]:
    yield from ()


def _alone(tensor: Tensor) -> Tensor:
    """The tensor in a storage of exactly its size."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _brief(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
