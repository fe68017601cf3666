"""The optimizers that a run may choose, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from owl_fast.training.adamw8bit import adamw8bit_bytes, build_adamw8bit
from owl_fast.training.muon import build_muon, muon_bytes
from owl_fast.training.optimizer import OptimizerSettings, adamw_bytes, build_adamw


class Kind(NamedTuple):
    """memory: what trains -> (bytes of all states, the most that is needed besides while a step is made)."""

    build: Callable[[Mapping[str, nn.Parameter], OptimizerSettings], torch.optim.Optimizer]
    memory: Callable[[Mapping[str, Tensor]], tuple[int, int]]


OPTIMIZERS = {
    "adamw": Kind(build_adamw, adamw_bytes),
    "adamw8bit": Kind(build_adamw8bit, adamw8bit_bytes),
    "muon": Kind(build_muon, muon_bytes),
}
