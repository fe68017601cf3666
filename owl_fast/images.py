"""Pictures -> what the vision tower eats.

Inference follows the original to the bit: resize in the picture's own mode (bicubic; Pillow takes nearest for
palettes), then RGB, then (x / 255 - mean) / std. Training converts to RGB first, again as the original does,
and so does inference with the first release's models.
Every picture comes in through load_image; picture_files.py decodes it and makes it the square.
"""

from __future__ import annotations

import ctypes
import math
import os
import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from owl_fast.errors import CheckpointError, ImageError, UnsupportedError
from owl_fast.files import is_there, read_json
from owl_fast.picture_files import MAX_BYTES, check_size, decode, load, picture_bytes, rgb, square

PREPROCESSING = 1  # another number when the same picture would give other pixels

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
RESCALE = 0.00392156862745098  # 1 / 255 as the configuration files write it

Triple = tuple[float, float, float]


def load_image(source: object, pixels: bool = True) -> Image.Image:
    """Decode a picture, in its own mode, first frame. pixels: False leaves it at the header.

    source: path (str or os.PathLike), data URI, bytes, binary file object, PIL image, uint8 array (H, W) or
    (H, W, C), uint8 tensor (C, H, W) or, where only that makes sense, (H, W, C). URLs are not fetched here.
    ImageError: anything else, broken data, more than MAX_BYTES encoded, MAX_PIXELS or MAX_SIDE; sizes are
    checked before pixels are decoded.
    """
    if isinstance(source, Image.Image):
        return load(source, "PIL image", pixels)
    if isinstance(source, (bytes, bytearray, memoryview, str, os.PathLike)):
        return decode(picture_bytes(source), _label(source), pixels)
    if isinstance(source, Tensor):
        return _from_tensor(source)
    if hasattr(source, "__array_interface__"):
        return _from_array(source)
    if hasattr(source, "read"):
        try:
            data = source.read(MAX_BYTES + 1)
        except (OSError, ValueError):
            raise ImageError("the file object cannot be read; open it for reading in binary mode") from None
        if not isinstance(data, bytes):
            raise ImageError("the file object gives text; open it in binary mode")
        return decode(data, "file object", pixels)
    raise ImageError(
        f"a {type(source).__name__} is no picture; wanted a path, data URI, bytes, binary file, PIL image, "
        "uint8 array or uint8 tensor"
    )


def _label(source: bytes | bytearray | memoryview | str | os.PathLike[str]) -> str:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"picture of {len(source)} bytes"
    return "data URI" if isinstance(source, str) and source.startswith("data:") else f"{str(source)!r:.200}"


@dataclass(frozen=True)
class ImageProcessor:
    """Pictures -> normalised float32 (3, size, size). mean and std per channel on the 0..1 scale.
    rgb_first: RGB before the resize, in inference too. crop: scale the shorter side and cut out the middle,
    as the video release does; otherwise the picture is squeezed."""

    size: int = 224
    mean: Triple = CLIP_MEAN
    std: Triple = CLIP_STD
    rgb_first: bool = False
    crop: bool = False

    @classmethod
    def from_folder(cls, folder: str | Path, default_size: int = 224) -> ImageProcessor:
        """Read preprocessor_config.json; what it leaves out (or the file, if absent) is CLIP's default.

        CheckpointError: values that make no sense. UnsupportedError: steps the original does not take.
        """
        path = Path(folder) / "preprocessor_config.json"
        if not is_there(path):
            return cls(size=default_size)
        raw = read_json(path)
        size = _side(raw.get("size"), default_size, f"{path}: size")
        if _side(raw.get("crop_size"), size, f"{path}: crop_size") != size:
            raise UnsupportedError(f"{path}: crop_size differs from size; no picture is cropped")
        for step in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
            if raw.get(step, True) is not True:
                raise UnsupportedError(f"{path}: {step} is {raw[step]!r:.40}; this engine always does it")
        factor = raw.get("rescale_factor", RESCALE)
        if not isinstance(factor, float) or abs(factor - RESCALE) > 1e-9:
            raise UnsupportedError(f"{path}: rescale_factor {factor!r:.40}; this engine divides by 255")
        mean = _triple(raw.get("image_mean", CLIP_MEAN), f"{path}: image_mean")
        std = _triple(raw.get("image_std", CLIP_STD), f"{path}: image_std")
        if min(std) <= 0:
            raise CheckpointError(f"{path}: image_std {std}: wanted numbers > 0")
        return cls(size, mean, std)

    def to_dict(self) -> dict[str, Any]:
        """The preprocessor_config.json of a folder in Hugging Face layout."""
        return {
            "image_processor_type": "MplugOwlImageProcessor",
            "do_resize": True,
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_rescale": True,
            "do_normalize": True,
            "resample": int(Image.Resampling.BICUBIC),
            "rescale_factor": RESCALE,
            "size": {"shortest_edge": self.size},
            "crop_size": {"height": self.size, "width": self.size},
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    def __call__(self, source: object, training: bool = False) -> Tensor:
        """float32 (3, size, size) of anything load_image takes. training: RGB before the resize."""
        rgb_first = training or self.rgb_first
        return self._normalise(square(load_image(source), self.size, rgb_first, self.crop))

    def frame(self, source: object) -> Tensor:
        """float32 (3, size, size) of a frame of a video: always squeezed, as the original's reader does."""
        return self._normalise(square(load_image(source), self.size, rgb_first=True))

    def augment(self, source: object, rng: random.Random) -> Tensor:
        """Augmented training: a random crop of half to all of the area, resized, mirrored half the time."""
        image = rgb(load_image(source))
        image = square(image.crop(_random_box(image.width, image.height, rng)), self.size)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return self._normalise(image)

    @cached_property
    def _levels(self) -> Tensor:
        """(3, 256): normalised value of each grey level; roundings as in the original: float64, float32."""
        scaled = (torch.arange(256, dtype=torch.float64) * RESCALE).float()
        return (scaled - torch.tensor(self.mean)[:, None]) / torch.tensor(self.std)[:, None]

    def _normalise(self, image: Image.Image) -> Tensor:
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(-1, 3)  # (S * S, 3)
        return torch.gather(self._levels, 1, pixels.t().long()).view(3, self.size, self.size)


def _random_box(width: int, height: int, rng: random.Random) -> tuple[int, int, int, int]:
    """A crop of 0.5..1 of the area, aspect 3/4..4/3 (log-uniform); all of it if ten draws do not fit."""
    for _ in range(10):
        area = width * height * rng.uniform(0.5, 1.0)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            return left, top, left + w, top + h
    return 0, 0, width, height


# --- sources ----------------------------------------------------------------------------------------------


def _from_tensor(tensor: Tensor) -> Image.Image:
    """uint8 (C, H, W), or (H, W, C) where only that makes sense, or (H, W)."""
    shape = tuple(tensor.shape)
    if tensor.dtype != torch.uint8 or tensor.dim() not in (2, 3):
        raise ImageError(f"tensor {tensor.dtype} {shape}: wanted uint8 (C, H, W) or (H, W, C)")
    if tensor.dim() == 3 and shape[0] in (1, 3, 4):
        tensor = tensor.permute(1, 2, 0)
    height, width = tensor.shape[:2]
    mode = _array_mode(tuple(tensor.shape), f"tensor {shape}")
    tensor = tensor.detach().cpu().contiguous()
    # Reading the memory directly: tensor.numpy() would need numpy, which inference does not.
    return Image.frombytes(mode, (width, height), ctypes.string_at(tensor.data_ptr(), tensor.numel()))


def _from_array(array: Any) -> Image.Image:
    """uint8 (H, W) or (H, W, C) of anything with numpy's array interface."""
    interface = array.__array_interface__
    shape = tuple(interface["shape"])
    if interface["typestr"] != "|u1" or len(shape) not in (2, 3):
        raise ImageError(f"array {interface['typestr']} {shape}: wanted uint8 of shape (H, W, 3)")
    mode = _array_mode(shape, f"array {shape}")
    return Image.frombytes(mode, (shape[1], shape[0]), array.tobytes())


def _array_mode(shape: tuple[int, ...], label: str) -> str:
    """Pillow's mode for (H, W) or (H, W, C); ImageError for other channels and sizes past the limits."""
    channels = shape[2] if len(shape) == 3 else 1
    mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(channels)
    if mode is None:
        raise ImageError(f"{label}: {channels} channels; wanted 1, 3 or 4")
    check_size(shape[1], shape[0], label)
    return mode


# --- preprocessor_config.json -----------------------------------------------------------------------------


def _side(raw: Any, default: int, where: str) -> int:
    """The side of a square picture from an int, {"shortest_edge"} or {"height", "width"}."""
    if raw is None:
        return default
    sides = list(raw.values()) if isinstance(raw, dict) else [raw]
    good = all(isinstance(s, int) and not isinstance(s, bool) and 1 <= s <= 4096 for s in sides)
    if not sides or not good or len(set(sides)) != 1:
        raise CheckpointError(f"{where} is {raw!r:.80}; wanted one side of 1..4096 pixels")
    return int(sides[0])


def _triple(raw: Any, where: str) -> Triple:
    if isinstance(raw, (list, tuple)) and len(raw) == 3:
        numbers = [float(x) for x in raw if isinstance(x, (int, float)) and not isinstance(x, bool)]
        if len(numbers) == 3 and all(math.isfinite(x) for x in numbers):
            return numbers[0], numbers[1], numbers[2]
    raise CheckpointError(f"{where} is {raw!r:.80}; wanted three finite numbers")
