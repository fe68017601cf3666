"""Which weights a model folder or file holds, as one SHA-256."""

from __future__ import annotations

import ctypes
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch import Tensor

from owl_fast.checkpoints.folder import WeightFolder
from owl_fast.checkpoints.names import HF_NAMES, map_name
from owl_fast.checkpoints.source import open_weights
from owl_fast.checkpoints.tensorfile import open_tensors


def weights_sha256(weights: str | Path | WeightFolder) -> str:
    """Hex digest over the name, dtype, shape and values of every tensor that a model keeps.

    How the tensors are spread over files, in which format and order, makes no difference; another dtype does.
    Damaged values have another digest: the files' own checksums need not be compared on top.
    """
    if not isinstance(weights, WeightFolder):
        weights = open_weights(Path(weights))
    lines: list[str] = []
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter
        for file in weights.files:
            with open_tensors(weights.path / file, check=False) as opened:
                names = [name for name in opened.infos if map_name(HF_NAMES, name) is not None]
                lines += pool.map(_line, names, [opened.read(name) for name in names])
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _line(name: str, tensor: Tensor) -> str:
    tensor = tensor.contiguous()
    data = (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr()) if tensor.nbytes else b""
    return f"{name} {tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(data).hexdigest()}\n"
