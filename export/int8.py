"""The vision tower in 8 bits as an ONNX file: static quantization, calibrated on pictures.

Weights are rounded per output channel and what they multiply per tensor; everything between (norms, softmax,
activations, the convolution of the patches, products of two activations) stays in float32. N pictures, E
width of the tower.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from owl_fast.doctor.pairs import SIDE, groups
from owl_fast.engine.onnx_vision import FILE, INPUT
from owl_fast.errors import ParameterError
from owl_fast.export.command import unbroken
from owl_fast.export.onnx_file import EXTERNAL_BYTES, put_metadata, write_onnx
from owl_fast.export.pictures import PicturePart
from owl_fast.images import ImageProcessor
from owl_fast.models.layers import LayerNorm, Linear
from owl_fast.models.vision import VisionLayer, VisionTower

MOST_PICTURES = 128  # ranges hardly grow any more, and a ViT-L takes a second for each
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
CLOUDS = 16


class Pictures(NamedTuple):
    """Pixels (1, 3, S, S) of each picture to calibrate on, and of others to compare with torch. told: what
    they are, in words."""

    calibrate: list[Tensor]
    compare: list[Tensor]
    told: str


def pictures(data: str | None, processor: ImageProcessor) -> Pictures:
    """Those of a folder or a pattern, evenly spread where they are too many; without one those built in.
    Every fourth is kept for the comparison."""
    if data is None:
        found: Sequence[object] = built_in()
        told = f"{len(found)} built-in pictures"
    else:
        found = _files(data)
        told = f"{len(found)} pictures of {data}"
    pixels = [processor(picture)[None] for picture in found]
    kept = pixels[3::4]
    return Pictures([p for i, p in enumerate(pixels) if i % 4 != 3], kept or pixels, told)


def _files(data: str) -> list[Path]:
    path = Path(data)
    names = sorted(path.iterdir()) if path.is_dir() else sorted(map(Path, glob(data, recursive=True)))
    files = [name for name in names if name.suffix.lower() in ENDINGS]
    if not files:
        raise ParameterError(
            f"--data {data!s:.200}: no pictures; wanted a folder or a pattern such as 'photos/**/*.jpg' "
            f"({', '.join(ENDINGS)})"
        )
    step = max(len(files) / MOST_PICTURES, 1.0)
    return [files[int(place * step)] for place in range(min(len(files), MOST_PICTURES))]


def built_in() -> list[Image.Image]:
    """Coloured shapes on white, and clouds of colours at every scale, which have the spectrum of photographs;
    three shapes and three clouds of eight are calibrated on."""
    shapes = [picture for group in groups() for picture, _ in group]
    return shapes + [_cloud(random.Random(seed)) for seed in range(CLOUDS)]


def _cloud(rng: random.Random) -> Image.Image:
    """Noise of 2, 4, 8 ... points a side, the finer the fainter."""
    made = Image.effect_noise((SIDE, SIDE), 0).convert("RGB")
    points, share = 2, 1.0
    while points <= SIDE:
        noise = Image.frombytes("RGB", (points, points), rng.randbytes(3 * points * points))
        made = Image.blend(made, noise.resize((SIDE, SIDE), Image.Resampling.BICUBIC), share)
        points, share = points * 2, share * 0.6
    return made


def write_int8(
    part: PicturePart,
    folder: Path,
    metadata: Mapping[str, str],
    calibrate: Sequence[Tensor],
    progress: Callable[[int, int], None],
) -> Path:
    """FILE in an empty folder, as write_onnx gives it but in 8 bits. part: in float32, on the CPU; its
    weights change, and what it computes stays."""
    with unbroken():
        from onnxruntime.quantization import QuantType, quantize_static

    smooth_(part.vision_model, calibrate)
    large = sum(weight.nbytes for weight in part.parameters()) > EXTERNAL_BYTES
    with tempfile.TemporaryDirectory(dir=folder) as beside, _temporary_files_in(beside):
        dense = write_onnx(part, Path(beside), {"onnx.quant.pre_process": "onnxruntime.quant"})
        quantize_static(
            dense,
            folder / FILE,
            _Reader(calibrate, progress),
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            # 7 bits: two products of 8 fit into 16 bits, where processors without VNNI add them up.
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            use_external_data_format=large,
            extra_options={"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": ["MatMul"]},
        )
    put_metadata(folder / FILE, metadata)
    return folder / FILE


class _Reader:
    """Pictures as the quantizer asks for them."""

    def __init__(self, pixels: Sequence[Tensor], progress: Callable[[int, int], None]) -> None:
        self._pixels, self._progress, self._done = pixels, progress, 0

    def get_next(self) -> dict[str, object] | None:
        if self._done == len(self._pixels):
            return None
        self._done += 1
        self._progress(self._done, len(self._pixels))
        return {INPUT: self._pixels[self._done - 1].numpy()}


@contextmanager
def _temporary_files_in(folder: str) -> Iterator[None]:
    """The quantizer writes copies of the model; they go to the disk that was asked for."""
    before, tempfile.tempdir = tempfile.tempdir, folder
    try:
        yield
    finally:
        tempfile.tempdir = before


@torch.no_grad()
def smooth_(tower: VisionTower, pixels: Iterable[Tensor]) -> None:
    """Move what makes some channels behind a norm large into the weights that multiply them, which changes no
    result (arXiv 2211.10438): one scale for all channels then serves each of them.

    A channel is divided by sqrt(its largest value / the largest weight that multiplies it).
    """
    pairs: list[tuple[LayerNorm, Linear]] = []
    for layer in tower.encoder.layers:
        assert isinstance(layer, VisionLayer)
        pairs.append((layer.input_layernorm, layer.self_attn.query_key_value))
        pairs.append((layer.post_attention_layernorm, layer.mlp.fc1))
    largest = _largest_behind([norm for norm, _ in pairs], tower, pixels)
    for (norm, linear), seen in zip(pairs, largest, strict=True):
        assert isinstance(linear.operand, Tensor)
        heaviest = linear.operand.abs().amax(0)
        by = (seen.clamp(min=1e-5) / heaviest.clamp(min=1e-5)).sqrt()
        norm.weight.div_(by)
        norm.bias.div_(by)
        linear.operand.mul_(by)


def _largest_behind(norms: Sequence[LayerNorm], tower: nn.Module, pixels: Iterable[Tensor]) -> list[Tensor]:
    """Of each norm's output, (E,): the largest absolute value of a channel in any row of any picture."""
    largest = [torch.zeros(len(norm.weight)) for norm in norms]

    def watch(index: int) -> Callable[..., None]:
        def see(_: nn.Module, __: object, output: Tensor) -> None:
            torch.maximum(largest[index], output.abs().flatten(0, -2).amax(0), out=largest[index])

        return see

    hooks = [norm.register_forward_hook(watch(index)) for index, norm in enumerate(norms)]
    try:
        for picture in pixels:
            tower(picture)
    finally:
        for hook in hooks:
            hook.remove()
    return largest
