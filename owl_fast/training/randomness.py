"""Random numbers of a run: every generator is seeded anew for each draw, update and evaluation.

No random state lives from one update to the next, so none has to be saved: what a run draws is a function of
its seed and of where it is.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from owl_fast.training.sources import derive_seed


def seed_everything(*parts: object) -> None:
    """Seed the global generators of Python, numpy and torch (with every CUDA device) from derive_seed."""
    seed_on_cpu(*parts)
    torch.manual_seed(derive_seed(*parts))


def seed_on_cpu(*parts: object) -> None:
    """The same without devices, for what reads samples: a hundred times as fast."""
    seed = derive_seed(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


@contextmanager
def callers_randomness_kept(device: torch.device) -> Iterator[None]:
    """Afterwards the global generators go on as if the block had drawn nothing."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
