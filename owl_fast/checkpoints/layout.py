"""How a release names and shapes the tensors of its state dict: one Layout per release.

A tensor of a file is found by its name (Layout.names gives ours) and copied into a Place, which is a view of
a parameter. A fused or interleaved weight has several places, so nothing is assembled in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from owl_fast.checkpoints.names import HF_NAMES, NameMap
from owl_fast.config import OwlConfig


class Place(NamedTuple):
    """Where a tensor of a file goes: `shape` is its shape in the file, `view` as many elements in order."""

    view: Tensor
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """One release's state dict.

    names: the file's names -> the model's, or None for what is knowingly dropped.
    places: the model's views by name, and its config -> every tensor the file must hold, by the model's name.
    sections: a config.json of this release -> the sections OwlConfig.from_dict reads.
    defaults: those sections where neither a config nor the tensors say anything.
    """

    release: str
    model_type: str
    names: NameMap
    places: Callable[[Mapping[str, Tensor], OwlConfig], dict[str, Place]]
    sections: Callable[[Mapping[str, Any]], dict[str, Any]]
    defaults: Mapping[str, Any]


def _as_they_are(views: Mapping[str, Tensor], config: OwlConfig) -> dict[str, Place]:
    return {name: Place(view, tuple(view.shape)) for name, view in views.items()}


LATER = Layout(
    release="the Hugging Face release",
    model_type="mplug-owl",
    names=HF_NAMES,
    places=_as_they_are,
    sections=dict,
    defaults={},
)
