"""A GGUF file of LLaMA's shapes for llama.cpp, with random blocks of a quantization, or random numbers.

Nothing is quantized: the blocks are written as they are, with scales that give weights a deviation of 0.02.
"""

from __future__ import annotations

import shutil
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from owl_fast.config import LlamaConfig
from owl_fast.export.gguf_file import add_words, describe, file_name, shapes
from owl_fast.export.vocabulary import BYTE, NORMAL, Piece, filled, pieces

DEVIATION = 0.02
# Of each scheme: weights in a block, its fields in order, and values of the fields that are not random. Those
# that are make q - 8, q, and q a - 7.5 b with six-bit a and b, which deviate by 4.6, 74 and 260.
BLOCKS: dict[str, tuple[int, list[tuple[str, str, int]], dict[str, float]]] = {
    "F16": (1, [("w", "<f2", 1)], {}),
    "Q4_0": (32, [("d", "<f2", 1), ("q", "u1", 16)], {"d": DEVIATION / 4.6}),
    "Q8_0": (32, [("d", "<f2", 1), ("q", "i1", 32)], {"d": DEVIATION / 74}),
    "Q4_K": (
        256,
        [("d", "<f2", 1), ("dmin", "<f2", 1), ("scales", "u1", 12), ("q", "u1", 128)],
        {"d": DEVIATION / 260, "dmin": 7.5 * DEVIATION / 260},
    ),
}


def gguf_file(folder: Path, config: LlamaConfig, scheme: str, vocabulary: bytes | None = None) -> Path:
    """The file of these shapes in the folder, written if it is not there. vocabulary: a SentencePiece model
    to write into it, filled up to the model's size. OSError when there is no room."""
    llama = config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.vocab_size
    words = "" if vocabulary is None else "-words"
    path = folder / f"random-llama-{'-'.join(map(str, llama))}-{scheme}{words}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        size = sum(_bytes(shape, scheme) for shape in tensors(config).values())
        if (free := shutil.disk_usage(folder).free) < size + (1 << 30):
            raise OSError(f"{folder} has {free / 1e9:.1f} GB free; {path.name} takes {size / 1e9:.1f} GB")
        unfinished = path.with_suffix(".unfinished")
        _write(unfinished, config, scheme, vocabulary)
        unfinished.rename(path)
    return path


def tensors(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Names in the file and shapes, outputs first."""
    return {file_name(name): shape for name, shape in shapes(config).items()}


def _write(path: Path, config: LlamaConfig, scheme: str, vocabulary: bytes | None) -> None:
    import gguf

    kind = gguf.GGMLQuantizationType[scheme]
    writer = gguf.GGUFWriter(path, "llama")
    describe(writer, config)
    if vocabulary is None:
        writer.add_tokenizer_model("no_vocab")
    else:
        add_words(writer, _words(filled(vocabulary, config.vocab_size)), config)
    shapes = tensors(config)
    for name, shape in shapes.items():
        size = _bytes(shape, scheme)
        if len(shape) == 1:
            writer.add_tensor_info(name, shape, np.dtype(np.float32), size)
        else:
            rows = (shape[0], size // shape[0])
            writer.add_tensor_info(name, rows, np.dtype(np.uint8), size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    generator = np.random.default_rng(0)
    for shape in tqdm(shapes.values(), desc=path.stem, leave=False, disable=None):
        norm = len(shape) == 1
        writer.write_tensor_data(
            np.ones(shape, np.float32) if norm else _blocks(generator, _bytes(shape, scheme), scheme)
        )
    writer.close()


def _words(vocabulary: bytes) -> list[Piece]:
    """Byte pieces become words too: random ones make no character, and would be held back."""
    return [p._replace(kind=NORMAL if p.kind == BYTE else p.kind) for p in pieces(vocabulary)]


def _bytes(shape: tuple[int, ...], scheme: str) -> int:
    """Of a tensor: norms stay in float32."""
    if len(shape) == 1:
        return 4 * shape[0]
    weights, *_ = BLOCKS[scheme]
    assert shape[1] % weights == 0
    return prod(shape) // weights * _block(scheme).itemsize


def _block(scheme: str) -> np.dtype[Any]:
    return np.dtype([(name, kind, (count,)) for name, kind, count in BLOCKS[scheme][1]])


def _blocks(generator: np.random.Generator, size: int, scheme: str) -> NDArray[np.uint8]:
    if scheme == "F16":
        return (generator.standard_normal(size // 2, np.float32) * DEVIATION).astype("<f2").view(np.uint8)
    random = np.frombuffer(bytearray(generator.bytes(size)), dtype=np.uint8)
    fields = random.view(_block(scheme))
    for name, value in BLOCKS[scheme][2].items():
        fields[name] = value
    return random
