"""Which weights a model folder or file holds, as one SHA-256."""

from __future__ import annotations

import ctypes
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch import Tensor

from owl_fast.checkpoints.folder import WeightFolder
from owl_fast.checkpoints.names import HF_NAMES, map_name
from owl_fast.checkpoints.source import Source, open_weights
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


def part_sha256(source: Source, prefixes: tuple[str, ...]) -> str:
    """Hex digest over the tensors of a source whose names in the model begin so, and over the heads, of which
    weights tell nothing. Values count, in float32, and not in which dtype or files they are kept."""
    config = source.config
    names: dict[str, str] = {name: target for name, target in source.targets.items() if target}
    for weight, update in source.updates.items():
        names |= {update.a: f"{weight} A {source.alpha}", update.b: f"{weight} B {source.alpha}"}
    wanted = {name: target for name, target in names.items() if target.startswith(prefixes)}
    lines = [
        f"{prefix} {part.num_attention_heads} heads\n"
        for prefix, part in (("vision_model.", config.vision), ("abstractor.", config.abstractor))
        if prefix in prefixes
    ]

    def line(target: str, tensor: Tensor) -> str:
        return _line(target, tensor.float().flatten() if tensor.is_floating_point() else tensor.flatten())

    with ThreadPoolExecutor() as pool:
        for file in source.weights.files:
            with open_tensors(source.weights.path / file, check=False) as opened:
                here = [name for name in opened.infos if name in wanted]
                lines += pool.map(line, (wanted[name] for name in here), (opened.read(name) for name in here))
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _line(name: str, tensor: Tensor) -> str:
    tensor = tensor.contiguous()
    data = (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr()) if tensor.nbytes else b""
    return f"{name} {tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(data).hexdigest()}\n"
