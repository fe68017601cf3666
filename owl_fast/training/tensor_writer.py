"""A .safetensors file written tensor by tensor and onto the disk: none is copied as a whole beforehand."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from owl_fast.checkpoints.safetensors_header import KNOWN

CODES = {dtype: code for code, dtype in KNOWN.items()}
CHUNK = 16 << 20  # bytes per write


def write_tensors_synced(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write and fsync; OSError when the disk does not take it. Dtypes are those that checkpoints know."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        for part in _gathered(_parts(tensors)):
            while part:
                part = part[os.write(descriptor, part[:CHUNK]) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _gathered(parts: Iterator[memoryview]) -> Iterator[memoryview]:
    """The same bytes; small parts together."""
    small = bytearray()
    for part in parts:
        if len(small) + len(part) > CHUNK:
            yield memoryview(bytes(small))
            small.clear()
        if len(part) > CHUNK:
            yield part
        else:
            small += part
    yield memoryview(bytes(small))


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """The header, padded to a multiple of 8 bytes, then the values of one tensor after the other."""
    entries, start = {}, 0
    for name, tensor in tensors.items():
        place = [start, start + tensor.nbytes]
        entries[name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": place}
        start = place[1]
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    header += b" " * (-len(header) % 8)
    yield memoryview(len(header).to_bytes(8, "little") + header)
    for tensor in tensors.values():
        values = tensor.detach().to("cpu").contiguous().reshape(-1)
        if len(values):
            yield values.view(torch.uint8).numpy().data
