"""Filling places of a model from tensors of a file: copied, updated by a low-rank pair, or quantized.

Rows go through in blocks, so that nothing of the size of a weight is in memory beside the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from owl_fast.checkpoints.layout import Layout
from owl_fast.checkpoints.names import packed_views
from owl_fast.checkpoints.tensorfile import check_values
from owl_fast.models.owl import Owl
from owl_fast.quantization.whole import packer

AT_ONCE = 1 << 18  # float32 numbers of a weight in memory while it is changed


class Factors(NamedTuple):
    """The halves of a low-rank update W += B A: b (N, r), a (r, K), float32."""

    b: Tensor
    a: Tensor


class PackedPlace(NamedTuple):
    """Where the quantized form of a tensor of a file goes: rows of q and of the scales, in its order."""

    q: Tensor
    scale: Tensor
    scheme: str
    group: int

    def fill(self, tensor: Tensor, update: Factors | None, where: str) -> None:
        """tensor: rows in the file's order. CheckpointError for numbers that are none."""
        width = tensor.shape[-1]
        shape = (*self.q.shape[:-1], width)
        pack = packer(self.scheme, self.group)
        for rows, block in _blocks(tensor.reshape(shape), update):
            block = block.to(self.q.device)
            check_values(block, where)
            packed = pack(block.reshape(-1, width))
            for part, target in ((packed.q, self.q[rows]), (packed.scale, self.scale[rows])):
                target.copy_(part.view(target.shape))


def fill(view: Tensor, tensor: Tensor, update: Factors | None) -> None:
    """A dense place; updates are summed in float32 and rounded once."""
    if update is None:
        view.copy_(tensor.reshape(view.shape))
        return
    for rows, block in _blocks(tensor.reshape(view.shape), update):
        view[rows].copy_(block)


def _blocks(weight: Tensor, update: Factors | None) -> Iterator[tuple[slice, Tensor]]:
    """Some leading rows after the other, in float32, with their part of the update."""
    count = max(1, AT_ONCE // weight[0].numel())
    b = None if update is None else update.b.view(*weight.shape[:-1], -1)
    for start in range(0, len(weight), count):
        rows = slice(start, start + count)
        block = weight[rows].float()
        yield rows, block if update is None or b is None else (b[rows] @ update.a).add_(block)


def packed_places(layout: Layout, model: Owl) -> dict[str, PackedPlace]:
    """The model's name of every tensor of the files that is quantized while it is read -> its place."""
    quantization = model.config.quantization
    if quantization is None:
        return {}
    held = packed_views(model)
    # Rows are what a layout rearranges: it places those of q and of the scales like those of the weight.
    codes = layout.places({name: weight.q for name, weight in held.items()}, model.config)
    scales = layout.places({name: weight.scale for name, weight in held.items()}, model.config)
    schemes = {torch.int8: "int8", torch.uint8: "int4"}
    return {
        name: PackedPlace(place.view, scales[name].view, schemes[place.view.dtype], quantization.group)
        for name, place in codes.items()
    }
