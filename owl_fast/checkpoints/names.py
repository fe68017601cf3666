"""Checkpoint names and where their tensors live in the model, as data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from owl_fast.models.fusion import parameter_sources
from owl_fast.models.layers import Linear

NameMap = Mapping[re.Pattern[str], str | None]

# Full-match pattern -> the model's name (a replacement as in re.sub), or None: knowingly dropped.
# A name that no pattern matches is the model's name already.
HF_NAMES: NameMap = {
    # Rotary frequencies: computed exactly from rope_theta; the file may hold them in half precision.
    re.compile(r"language_model\.model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"): None,
}


@dataclass(frozen=True)
class Slot:
    """Rows [start, start + shape[0]) of a parameter: the place of one checkpoint tensor."""

    parameter: str
    start: int
    shape: tuple[int, ...]


def map_name(names: NameMap, name: str) -> str | None:
    """The model's name of a file's tensor, or None if it is dropped on purpose."""
    for pattern, replacement in names.items():
        if match := pattern.fullmatch(name):
            return None if replacement is None else match.expand(replacement)
    return name


def slots(model: nn.Module) -> dict[str, Slot]:
    """Checkpoint name -> its place, for every parameter; fused weights are split by their rows."""
    found = {}
    for name, parameter in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        sources = parameter_sources(name)
        rows = module.rows if isinstance(module, Linear) else (parameter.shape[0],)
        start = 0
        for source, count in zip(sources, rows, strict=True):
            found[source] = Slot(name, start, (count, *parameter.shape[1:]))
            start += count
    return found


def views(model: nn.Module) -> dict[str, Tensor]:
    """Checkpoint name -> the rows of the parameter that hold that tensor, without gradient."""
    parameters = dict(model.named_parameters())
    return {
        name: parameters[slot.parameter].detach().narrow(0, slot.start, slot.shape[0])
        for name, slot in slots(model).items()
    }
