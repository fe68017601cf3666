"""Weight files: the only place that reads tensors from disk or writes them there.

Both formats are memory-mapped: a tensor costs no anonymous memory until someone copies it. Pickles are read
with weights_only and nothing else; a file that needs more is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from owl_fast.errors import CheckpointError

# What a weight file may hold, by the names safetensors uses. Integers are for buffers that a name map drops.
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
PICKLED = (".bin", ".pt", ".pth")
ENDINGS = f".safetensors, {', '.join(PICKLED)}"


class TensorInfo(NamedTuple):
    """What a file says of one tensor before its values are touched."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


class TensorFile(Protocol):
    """An open weight file. Tensors from read() are views of the mapped file: copy before changing them."""

    infos: dict[str, TensorInfo]

    def read(self, name: str) -> Tensor: ...


@contextmanager
def open_tensors(path: str | Path) -> Iterator[TensorFile]:
    """Open a .safetensors or torch-zip (.bin, .pt, .pth) file; everything in it is checked before it yields.

    Raises CheckpointError naming the file (and the tensor) when it is missing, broken, or holds anything but
    dense tensors of the DTYPES.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        try:
            opened = safe_open(path, framework="pt", device="cpu")
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{path}: not a whole safetensors file ({_brief(error)})") from None
        with opened:
            yield _SafetensorsFile(path, opened)
    elif path.suffix in PICKLED:
        yield _PickledFile(path)
    else:
        raise CheckpointError(f"{path}: unknown weight format; wanted {ENDINGS}")


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of one file, as copies in memory (for small files such as adapters)."""
    with open_tensors(path) as file:
        return {name: file.read(name).clone() for name in file.infos}


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


class _SafetensorsFile:
    def __init__(self, path: Path, opened: Any) -> None:
        self._file = opened
        self.infos: dict[str, TensorInfo] = {}
        for name in opened.keys():  # noqa: SIM118 - not a mapping
            part = opened.get_slice(name)
            if part.get_dtype() not in DTYPES:
                raise CheckpointError(
                    f"{path}: tensor {name} has dtype {part.get_dtype()}; wanted {', '.join(DTYPES)}"
                )
            self.infos[name] = TensorInfo(tuple(part.get_shape()), DTYPES[part.get_dtype()])

    def read(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor


class _PickledFile:
    def __init__(self, path: Path) -> None:
        try:
            loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except Exception as error:  # the reader of foreign bytes raises a dozen kinds; all mean "refused"
            raise CheckpointError(
                f"{path}: not a plain torch weight file ({type(error).__name__}): it is cut short, in the "
                "format of torch before 1.6, or holds more than tensors. Wanted a zip written by torch.save "
                "of name -> tensor; save it again from a source you trust"
            ) from None
        if not isinstance(loaded, dict):
            raise CheckpointError(f"{path}: holds a {type(loaded).__name__}; wanted a dict of name -> tensor")
        for name, value in loaded.items():
            _check_plain(path, name, value)
        self._tensors: dict[str, Tensor] = {name: value.detach() for name, value in loaded.items()}
        self.infos = {name: TensorInfo(tuple(t.shape), t.dtype) for name, t in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        return self._tensors[name]


def _check_plain(path: Path, name: object, value: object) -> None:
    if not isinstance(name, str) or type(value) not in (Tensor, nn.Parameter):
        raise CheckpointError(
            f"{path}: entry {name!r:.80} is a {type(value).__name__}; wanted only name -> tensor "
            "(a training state keeps its weights one level down: save those alone)"
        )
    assert isinstance(value, Tensor)
    if value.layout != torch.strided or value.device.type != "cpu" or value.dtype not in DTYPES.values():
        raise CheckpointError(
            f"{path}: tensor {name} is {value.dtype}, {value.layout}, on {value.device}; "
            f"wanted a dense tensor of {', '.join(map(str, DTYPES.values()))}"
        )
    if not value.is_contiguous():
        raise CheckpointError(f"{path}: tensor {name} is a strided view {value.stride()}; wanted contiguous")


def _alone(tensor: Tensor) -> Tensor:
    """The tensor in a storage of exactly its size."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _brief(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
