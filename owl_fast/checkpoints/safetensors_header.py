"""The header of a .safetensors file: where its tensors are. Eight bytes of length, JSON, then the values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from owl_fast.checkpoints.mapped import DTYPES, FilePlace, TensorInfo, check_name, check_shape, is_sizes
from owl_fast.errors import CheckpointError
from owl_fast.files import MAX_JSON_BYTES, unique

# Quantized weights are written in this format alone.
KNOWN = {**DTYPES, "U8": torch.uint8, "I8": torch.int8}


def safetensors_places(path: Path, data: memoryview) -> dict[str, FilePlace]:
    """Tensors by name; CheckpointError unless they fill the file exactly, without holes or overlaps."""
    header, begin = _header(path, data)
    places = {name: _place(path, name, entry, begin) for name, entry in header.items()}
    end, last = begin, "the header"
    for name, place in sorted(places.items(), key=lambda item: (item[1].start, item[1].info.nbytes)):
        if place.start != end:
            raise CheckpointError(
                f"{path}: tensor {name:.200} begins at byte {place.start}, {last} ends at {end}; "
                "copy the file anew"
            )
        end, last = place.start + place.info.nbytes, f"tensor {name:.200}"
    if end != len(data):
        raise CheckpointError(
            f"{path}: {len(data)} bytes; its tensors end at {end} ({last}): cut short, or followed by "
            "something else. Copy the file anew"
        )
    return places


def _header(path: Path, data: memoryview) -> tuple[dict[str, Any], int]:
    """The JSON object without its metadata, and the byte behind it."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > len(data) - 8:
        raise CheckpointError(
            f"{path}: no safetensors file, or cut short: {len(data)} bytes with a header of {size}"
        )
    if size > MAX_JSON_BYTES:
        raise CheckpointError(f"{path}: a header of {size} bytes; at most {MAX_JSON_BYTES} are read")
    try:
        header = json.loads(bytes(data[8 : 8 + size]).decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the safetensors header is damaged ({error!s:.200})") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its header is a {type(header).__name__}; wanted a JSON object")
    header.pop("__metadata__", None)
    return header, 8 + size


def _place(path: Path, name: str, entry: Any, begin: int) -> FilePlace:
    fields = entry if isinstance(entry, dict) else {}
    shape, offsets, dtype = fields.get("shape"), fields.get("data_offsets"), fields.get("dtype")
    check_name(path, name)
    where = f"{path}: tensor {name:.200}"
    if not isinstance(dtype, str) or dtype not in KNOWN:
        raise CheckpointError(f"{where} has dtype {dtype!s:.40}; wanted {', '.join(KNOWN)}")
    if not is_sizes(shape) or not is_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{where} has no shape or no place in the header")
    check_shape(where, tuple(shape))
    info = TensorInfo(tuple(shape), KNOWN[dtype])
    if offsets[1] - offsets[0] != info.nbytes:
        raise CheckpointError(
            f"{where} has {offsets[1] - offsets[0]} bytes; shape {info.shape} of {dtype} takes {info.nbytes}"
        )
    return FilePlace(info, begin + offsets[0])
