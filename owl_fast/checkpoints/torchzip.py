"""The zip torch.save writes (torch 1.6 and later): where its tensors are, and whether its bytes are whole.

torch itself does not look at the CRC-32 of the members: a flipped bit would load in silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from owl_fast.checkpoints.mapped import DTYPES, FilePlace, TensorInfo, check_name, check_shape
from owl_fast.checkpoints.statedict import Foreign, StoredTensor, read_pickle
from owl_fast.checkpoints.ziplist import Member, checking, members
from owl_fast.errors import CheckpointError

MAX_PICKLE_BYTES = 16 << 20  # names and shapes alone; a 7B checkpoint's has 0.1 MB
STORAGES = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
}
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how files of torch before 1.6 begin


def torch_places(path: Path, data: memoryview) -> tuple[dict[str, FilePlace], Iterator[None]]:
    """Tensors by name, and the check of all members. CheckpointError for all but name -> dense tensor."""
    try:
        found = members(data)
        content, folder = _content(data, found)
    except ValueError as error:
        raise CheckpointError(
            f"{path}: no plain torch weight file: {_legacy(data) or error}. Wanted a zip written by "
            "torch.save of name -> tensor; copy it anew, or save it again from a source you trust"
        ) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds {_kind(content)}; wanted a dict of name -> tensor")
    places: dict[str, FilePlace] = {}
    owners: dict[str, str] = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, (StoredTensor, Foreign)):
            raise CheckpointError(
                f"{path}: entry {name!r:.80} is {_kind(value)}; wanted only name -> tensor "
                "(a training state keeps its weights one level down: save those alone)"
            )
        check_name(path, name)
        where = f"{path}: tensor {name:.200}"
        if isinstance(value, Foreign):
            raise CheckpointError(f"{where} is {_kind(value)}; wanted a dense tensor, nothing else is read")
        member = f"{folder}data/{value.storage.key}"
        places[name] = _place(where, value, found.get(member))
        owners.setdefault(member, f"{where}, ")
    if sum(place.info.nbytes for place in places.values()) > 2 * len(data):
        # Tied weights share a storage; hundreds of tensors in the same bytes are made to fill the memory.
        raise CheckpointError(f"{path}: its tensors lie over each other and take more than twice its size")
    return places, _checking(path, data, found, owners)


def _content(data: memoryview, found: dict[str, Member]) -> tuple[Any, str]:
    """The pickled object, and the folder that all members are in; ValueError if it cannot be read."""
    pickles = [name for name in found if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"it has {len(pickles)} members data.pkl")
    folder = pickles[0].removesuffix("data.pkl")
    if _member(data, found, f"{folder}byteorder", b"little") != b"little":
        raise ValueError("its numbers are not little-endian")
    return read_pickle(_member(data, found, pickles[0], b"")), folder


def _member(data: memoryview, found: dict[str, Member], name: str, default: bytes) -> bytes:
    """The bytes of a small member."""
    if (member := found.get(name)) is None:
        return default
    if member.size > MAX_PICKLE_BYTES:
        raise ValueError(f"{name:.120} has {member.size} bytes; at most {MAX_PICKLE_BYTES} are read")
    for _ in checking(data, name, member):
        pass
    return bytes(data[member.start : member.start + member.size])


def _place(where: str, tensor: StoredTensor, member: Member | None) -> FilePlace:
    kind, key, numel = tensor.storage
    if kind not in STORAGES:
        wanted = ", ".join(map(str, DTYPES.values()))
        raise CheckpointError(f"{where} is a {_printable(kind)}; wanted {wanted}")
    check_shape(where, tensor.shape)
    info = TensorInfo(tensor.shape, STORAGES[kind])
    if not _is_contiguous(tensor):
        raise CheckpointError(f"{where} is a strided view {tensor.strides}; wanted contiguous")
    size = info.dtype.itemsize
    if member is None or member.size != numel * size:
        came = "is not in the file" if member is None else f"has {member.size} bytes"
        raise CheckpointError(
            f"{where}: its storage {_printable(key)} {came}; {numel * size} bytes are wanted"
        )
    if tensor.offset * size + info.nbytes > member.size:
        raise CheckpointError(f"{where} reaches beyond its storage of {member.size} bytes")
    return FilePlace(info, member.start + tensor.offset * size)


def _is_contiguous(tensor: StoredTensor) -> bool:
    step = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if size != 1 and stride != step:
            return 0 in tensor.shape
        step *= size
    return True


def _checking(
    path: Path, data: memoryview, found: dict[str, Member], owners: dict[str, str]
) -> Iterator[None]:
    """The CRC-32 of every member in the order of the file."""
    for name, member in sorted(found.items(), key=lambda item: item[1].start):
        try:
            yield from checking(data, name, member)
        except ValueError as error:
            raise CheckpointError(f"{owners.get(name, f'{path}: ')}{error}. Copy the file anew") from None


def _legacy(data: memoryview) -> str:
    if bytes(data[: len(LEGACY)]) == LEGACY:
        return "it is in the format of torch before 1.6"
    return "it is a tar archive, as torch wrote before 0.4" if bytes(data[257:262]) == b"ustar" else ""


def _kind(value: Any) -> str:
    return _printable(value.name) if isinstance(value, Foreign) else f"a {type(value).__name__}"


def _printable(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")[:120]
