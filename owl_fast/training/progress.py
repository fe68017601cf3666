"""The bar of a run: updates, time left, loss, tokens a second, memory."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from tqdm import tqdm

from owl_fast import machine
from owl_fast.training.packing import TrainingBatch


class Progress:
    """From update `first` to update `last`; nothing is shown unless `shown`."""

    def __init__(self, first: int, last: int, device: torch.device, shown: bool) -> None:
        self.bar = tqdm(total=last, initial=first, disable=not shown, unit="step", dynamic_ncols=True)
        self.device = device
        self.said: dict[str, str] = {}
        self._since = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def counted(self, batches: Iterable[TrainingBatch]) -> Iterator[TrainingBatch]:
        """The micro-batches of an update, each seen on the bar when it is begun."""
        for number, batch in enumerate(batches, start=1):
            self.bar.set_postfix(self.said | {"micro": number} if number > 1 else self.said)
            yield batch

    def update(self, metrics: dict[str, Any]) -> None:
        """An update is done, with these numbers."""
        now = time.monotonic()
        loss = metrics["loss"]
        self.said = {
            "loss": "not finite" if loss is None else f"{loss:.4g}",
            "tok/s": f"{metrics['rows'] / (now - self._since):,.0f}",
            "memory": f"{machine.memory_in_use(self.device) / 1e9:.2f} GB",
        }
        self._since = now
        self.bar.set_postfix(self.said, refresh=False)
        self.bar.update()
