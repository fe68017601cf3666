"""A weight file as memory: tensors are views of it, and a second thread checks its bytes as they are read."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor

from owl_fast.errors import CheckpointError

# What a weight file may hold, by the names safetensors uses, which has small integers beside them for
# quantized weights. I64 is for buffers that a name map drops.
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
MAX_DIMENSIONS, MAX_ELEMENTS = 8, 1 << 47
MAP_NORESERVE = 0x4000  # Linux; the mmap module names it from Python 3.13 on


class TensorInfo(NamedTuple):
    """What a file says of one tensor before its values are touched."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


class FilePlace(NamedTuple):
    """A tensor and the byte of the file it begins at."""

    info: TensorInfo
    start: int


def map_file(path: Path, size: int) -> mmap.mmap:
    """The first `size` bytes of a file, read when touched."""
    if not size:
        raise CheckpointError(f"{path}: empty; copy the file anew")
    # Private and writable, since torch has no read-only tensors; no memory is set aside for such writes, so
    # that a file larger than the memory can be mapped.
    try:
        with path.open("rb") as file:
            return mmap.mmap(
                file.fileno(),
                size,
                flags=mmap.MAP_PRIVATE | MAP_NORESERVE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
            )
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None


def is_size(value: object) -> bool:
    """Whether a file's number can be a size, an offset or a stride."""
    return type(value) is int and 0 <= value < 1 << 63


def is_sizes(value: object) -> TypeGuard[Sequence[int]]:
    """Whether a file's value can be a shape, or offsets."""
    return isinstance(value, (list, tuple)) and all(map(is_size, value))


def check_name(path: Path, name: str) -> None:
    """CheckpointError for names that would write something else on a terminal."""
    if not name.isprintable():
        raise CheckpointError(f"{path}: a tensor is named {name!r:.200}; wanted printable characters")


def check_shape(where: str, shape: tuple[int, ...]) -> None:
    """CheckpointError for shapes no weight has; torch's own arithmetic with them would overflow."""
    if len(shape) > MAX_DIMENSIONS or prod(max(size, 1) for size in shape) > MAX_ELEMENTS:
        raise CheckpointError(
            f"{where} has {len(shape)} dimensions or more than {MAX_ELEMENTS} elements; no weight has"
        )


class MappedFile:
    """Tensors at known places of a mapped file. checking: one pass over the file's bytes, in steps."""

    def __init__(self, data: mmap.mmap, places: Mapping[str, FilePlace], checking: Iterator[None]) -> None:
        self.infos = {name: place.info for name, place in places.items()}
        self._data, self._places, self._checking = data, places, checking
        self._thread: threading.Thread | None = None
        self._trouble: Exception | None = None
        self._stopped = False

    def read(self, name: str) -> Tensor:
        """The tensor, a view of the file: copy it before changing it. The first call begins the check."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._check, daemon=True)
            self._thread.start()
        info, start = self._places[name]
        if not info.nbytes:
            return torch.empty(info.shape, dtype=info.dtype)
        flat = torch.frombuffer(self._data, dtype=torch.uint8, count=info.nbytes, offset=start)
        if start % info.dtype.itemsize:
            flat = flat.clone()  # legal, but no address for numbers of this size
        return flat.view(info.dtype).view(info.shape)

    def finish(self, wanted: bool) -> None:
        """Wait for the check, or end it where its result is not wanted; a CheckpointError is its result."""
        if self._thread is not None:
            self._stopped = not wanted
            self._thread.join()
            if wanted and self._trouble is not None:
                raise self._trouble

    def _check(self) -> None:
        try:
            for _ in self._checking:
                if self._stopped:
                    return
        except Exception as error:  # raised again by finish()
            self._trouble = error
