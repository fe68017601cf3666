"""A pool of training pictures drawn ahead: pixels, scenes and patch labels in three files of one folder.

Drawing costs about half as much as training on a picture, and three phases use the same pictures, so they are
drawn once. The pool is drawn in shards, each from a seed of its own; one that is there is not drawn again.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from recipes.owl_nano.dialogues import training_scene
from recipes.owl_nano.draw import Layout, draw_with_layout, patch_labels, sample_size
from recipes.owl_nano.settings import IMAGE_SIDE
from recipes.owl_nano.world import COLOR_NAMES, Scene

SHARD = 2000
LABEL_KINDS = 5  # shape, color, character, place of the shape in reading order, of the character in the word


def draw_shard(folder: Path, index: int, seed: int) -> None:
    """Draw SHARD pictures into folder/INDEX.npz; nothing happens if the file is there."""
    path = folder / f"{index:03d}.npz"
    if path.exists():
        return
    rng = random.Random(f"{seed}-{index}")
    scenes: list[Scene] = []
    pixels = np.empty((SHARD, IMAGE_SIDE, IMAGE_SIDE, 3), dtype=np.uint8)
    labels = np.empty((SHARD, LABEL_KINDS, 64), dtype=np.uint8)
    for row in range(SHARD):
        scene = training_scene(rng)
        picture, layout = draw_with_layout(scene, rng, sample_size(rng))
        pixels[row] = np.asarray(picture.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BICUBIC))
        labels[row] = all_labels(scene, layout)
        scenes.append(scene)
    draft = path.with_suffix(".draft.npz")
    np.savez(draft, pixels=pixels, labels=labels, scenes=np.frombuffer(pickle.dumps(scenes), dtype=np.uint8))
    draft.rename(path)


def all_labels(scene: Scene, layout: Layout) -> NDArray[np.int64]:
    """(5, 64): patch_labels, then the place in reading order of the shape and of the letter under the patch.

    Places count from 1; 0 is nothing there.
    """
    counted = replace(
        scene,
        shapes=tuple(replace(s, color=c) for s, c in zip(scene.shapes, COLOR_NAMES, strict=False)),
        text=None if scene.text is None else "ABCDEF"[: len(scene.text)],
    )
    labels, places = patch_labels(scene, layout), patch_labels(counted, layout)[1:]
    return np.concatenate([labels, places]).reshape(LABEL_KINDS, -1)


def draw_pool(folder: Path, shards: Iterable[int], seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in tqdm(shards, desc="drawing", unit="shard"):
        draw_shard(folder, index, seed)


class Pool:
    """The shards that are there; more may be drawn while it is used (refresh)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pixels: list[NDArray[np.uint8]] = []
        self.labels: list[NDArray[np.uint8]] = []
        self.scenes: list[Scene] = []
        self.refresh()

    def __len__(self) -> int:
        return len(self.scenes)

    def refresh(self) -> None:
        for path in sorted(self.folder.glob("[0-9][0-9][0-9].npz"))[len(self.pixels) :]:
            with np.load(path) as shard:
                self.pixels.append(shard["pixels"])
                self.labels.append(shard["labels"])
                self.scenes += pickle.loads(shard["scenes"].tobytes())

    def pictures(self, indices: list[int]) -> Tensor:
        """(n, 3, S, S) float32, normalised as at inference."""
        return normalise(torch.from_numpy(np.stack([self.pixels[i // SHARD][i % SHARD] for i in indices])))

    def patch_labels(self, indices: list[int]) -> Tensor:
        """(n, LABEL_KINDS, 64) int64."""
        return torch.from_numpy(np.stack([self.labels[i // SHARD][i % SHARD] for i in indices])).long()


_MEAN = torch.tensor((0.48145466, 0.4578275, 0.40821073))
_STD = torch.tensor((0.26862954, 0.26130258, 0.27577711))


def normalise(levels: Tensor) -> Tensor:
    """(n, S, S, 3) uint8 -> (n, 3, S, S) float32."""
    return ((levels.float() / 255 - _MEAN) / _STD).permute(0, 3, 1, 2).contiguous()
