"""The frozen vision tower's outputs on disk: stage 2 computes each picture once.

A file for each picture, named by the SHA-256 of its pixels in a folder named by that of the tower, holds its
dtype, its shape, the SHA-256 of its numbers, and the numbers. Files are written beside and renamed, so that
any number of processes may share a folder and die at any moment; one that is not whole is as none. Nothing is
thrown out when the folder is full: runs go through their data in rounds, where what was used longest ago is
what comes next.

n pictures, S side in pixels, P patches, E width of the tower.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from owl_fast.errors import UnsupportedError
from owl_fast.models.owl import Owl
from owl_fast.training.packing import TrainingBatch

MAGIC = b"owlfeat1"
HEADER = struct.Struct("<8sBII32s")  # magic, dtype, rows, width, digest
DTYPES = (torch.float32, torch.bfloat16)
RECOUNT = 256  # files written between two looks at what all processes have written

logger = logging.getLogger(__name__)


def tower_sha256(model: Owl) -> str:
    """Of the vision tower's weights, however they are held."""
    digest = hashlib.sha256()
    tower = model.vision_model
    for name, tensor in sorted((*tower.named_parameters(), *tower.named_buffers())):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


class FeatureCache:
    """Features (1 + P, E) by pixels (3, S, S), of one tower, in at most `limit` bytes of files.

    limit: by default what is there and half of what the disk has free. tower: tower_sha256 of the model.
    precision: of the tower's products; other rounding is another folder.
    """

    def __init__(self, folder: str | Path, tower: str, precision: str, limit: int | None = None) -> None:
        self.folder = Path(folder) / f"{tower[:32]}-{precision}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._held = self._count()
        self.limit = self._held + shutil.disk_usage(self.folder).free // 2 if limit is None else limit
        self._written = 0

    def get(self, pixels: Tensor) -> Tensor | None:
        """What the tower makes of these pixels, if it is there."""
        path = self._path(pixels)
        try:
            raw = path.read_bytes()
        except OSError:
            return None
        features = _decoded(raw)
        if features is None:
            path.unlink(missing_ok=True)  # half of it, or changed: it is computed again
        return features

    def put(self, pixels: Tensor, features: Tensor) -> None:
        """Keep what the tower made; not when the folder is full, or the disk."""
        raw = _encoded(features)
        if self._held + len(raw) > self.limit:
            return
        path = self._path(pixels)
        staging = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            path.parent.mkdir(exist_ok=True)
            staging.write_bytes(raw)
            os.replace(staging, path)
        except OSError as trouble:
            staging.unlink(missing_ok=True)
            self.limit = 0
            logger.warning("%s: no more features are kept: %s", self.folder, trouble)
            return
        self._held, self._written = self._held + len(raw), self._written + 1
        if self._written % RECOUNT == 0:
            self._held = self._count()

    def look(self, prepare: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
        """For encode_sample: a picture's features, or the pixels that `prepare` makes of it."""

        def found(picture: Any) -> Tensor:
            pixels = prepare(picture)
            features = self.get(pixels)
            return pixels if features is None else features

        return found

    @torch.no_grad()
    def fill(self, model: Owl, batch: TrainingBatch) -> TrainingBatch:
        """The batch with features of all its pictures: those that came as pixels are computed and kept.

        UnsupportedError when the tower trains: what it made is then of no use later.
        """
        if any(p.requires_grad for p in model.vision_model.parameters()):
            raise UnsupportedError("cached vision features came, but the vision tower trains; train without")
        if batch.pixels is None:
            return batch
        made = model.vision_model(batch.pixels.to(model.device, model.dtype)).cpu()  # (n, 1 + P, E)
        for pixels, features in zip(batch.pixels, made, strict=True):
            self.put(pixels, features)
        if batch.features is None or batch.from_pixels is None:
            return replace(batch, pixels=None, features=made, from_pixels=None)
        every = made.new_empty(len(batch.from_pixels), *made.shape[1:])
        every[batch.from_pixels], every[~batch.from_pixels] = made, batch.features.to(made.dtype)
        return replace(batch, pixels=None, features=every, from_pixels=None)

    def _path(self, pixels: Tensor) -> Path:
        digest = hashlib.sha256(f"{tuple(pixels.shape)} {pixels.dtype}\n".encode())
        digest.update(_bytes(pixels))
        name = digest.hexdigest()
        return self.folder / name[:2] / name

    def _count(self) -> int:
        """Bytes of all files; what vanishes meanwhile counts for nothing."""
        total = 0
        for path in self.folder.rglob("*"):
            try:
                total += path.stat().st_size if path.is_file() else 0
            except OSError:
                continue
        return total


def _bytes(x: Tensor) -> memoryview:
    flat = x.detach().cpu().contiguous().view(-1)
    return memoryview(flat.view(torch.uint8).numpy().data)


def _encoded(features: Tensor) -> bytes:
    features = features if features.dtype in DTYPES else features.float()
    data = _bytes(features)
    head = HEADER.pack(MAGIC, DTYPES.index(features.dtype), *features.shape, hashlib.sha256(data).digest())
    return head + bytes(data)


def _decoded(raw: bytes) -> Tensor | None:
    """None unless it is what was written."""
    if len(raw) < HEADER.size:
        return None
    magic, kind, rows, width, digest = HEADER.unpack_from(raw)
    data = raw[HEADER.size :]
    if magic != MAGIC or kind >= len(DTYPES) or hashlib.sha256(data).digest() != digest:
        return None
    return torch.frombuffer(bytearray(data), dtype=DTYPES[kind]).view(rows, width)
