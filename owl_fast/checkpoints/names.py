"""Checkpoint names and where their tensors live in the model, as data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from owl_fast import ops
from owl_fast.models.fusion import parameter_sources
from owl_fast.models.layers import Linear, PackedWeight

NameMap = Mapping[re.Pattern[str], str | None]

# Full-match pattern -> the model's name (a replacement as in re.sub), or None: knowingly dropped.
# A name that no pattern matches is the model's name already.
HF_NAMES: NameMap = {
    # Rotary frequencies: computed exactly from rope_theta; the file may hold them in half precision.
    re.compile(r"language_model\.model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"): None,
}


# A quantized weight NAME.weight is held as NAME.weight.q and NAME.weight.scale.
PACKED = (".weight.q", ".weight.scale")


@dataclass(frozen=True)
class Slot:
    """Rows [start, start + shape[0]) of a tensor of the model: the place of one checkpoint tensor."""

    tensor: str
    start: int
    shape: tuple[int, ...]


def map_name(names: NameMap, name: str) -> str | None:
    """The model's name of a file's tensor, or None if it is dropped on purpose."""
    for pattern, replacement in names.items():
        if match := pattern.fullmatch(name):
            return None if replacement is None else match.expand(replacement)
    return name


def slots(model: nn.Module) -> dict[str, Slot]:
    """Checkpoint name -> its place, for every parameter and every part of a quantized weight; fused weights
    are split by their rows."""
    found = {}
    for name, tensor in _tensors(model).items():
        # Parts of a quantized weight belong to the linear layer it is the weight of.
        plain, part = (
            (name.rpartition(".")[0], name[name.rindex(".") :]) if name.endswith(PACKED) else (name, "")
        )
        module = model.get_submodule(plain.rpartition(".")[0])
        sources = [source + part for source in parameter_sources(plain)]
        rows = module.rows if isinstance(module, Linear) else (tensor.shape[0],)
        start = 0
        for source, count in zip(sources, rows, strict=True):
            found[source] = Slot(name, start, (count, *tensor.shape[1:]))
            start += count
    return found


def views(model: nn.Module) -> dict[str, Tensor]:
    """Checkpoint name -> the rows of the model's tensor that hold that one, without gradient.

    Quantized weights that are laid out for a machine are not among them.
    """
    tensors = _tensors(model)
    return {
        name: tensors[slot.tensor].detach().narrow(0, slot.start, slot.shape[0])
        for name, slot in slots(model).items()
    }


def packed_views(model: nn.Module) -> dict[str, ops.Int8Weight | ops.Int4Weight]:
    """Checkpoint name of each quantized weight -> its rows."""
    found = {}
    for name, slot in slots(model).items():
        if name.endswith(PACKED[0]):
            module = model.get_submodule(slot.tensor.rpartition(".")[0])
            assert isinstance(module, PackedWeight)
            rows = slice(slot.start, slot.start + slot.shape[0])
            weight = module.canonical
            found[name.rpartition(".")[0]] = weight._replace(q=weight.q[rows], scale=weight.scale[rows])
    return found


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, and q and scale of quantized weights."""
    packed = {name: buffer for name, buffer in model.named_buffers() if name.endswith(PACKED)}
    return {**dict(model.named_parameters()), **packed}
