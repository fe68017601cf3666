"""Two processes that train together, each to be killed, stopped or held up by tests."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from owl_fast.command_line import exit_code
from owl_fast.errors import OwlError
from owl_fast.lora import LoraConfig
from owl_fast.training import (
    STAGE1,
    EncodedSample,
    OptimizerSettings,
    Source,
    Stage,
    Trainer,
    TrainSettings,
    stage2,
)
from owl_fast.training.loop import Evaluate
from owl_fast.training.ranks import joined
from owl_fast.training.stopping import Stop
from tests.training.owls import made_up, small_owl
from tests.training.survivor import evaluate, start

LONGER = TrainSettings(
    steps=12, batch=4, micro_batch=1, optimizer=OptimizerSettings(lr=1e-3), save_every=1, progress=False
)
STAGE2 = stage2(LoraConfig(dropout=0.0))


@dataclass(frozen=True)
class Rank:
    """One process of a run. before(rank, step): called as each update of its begins."""

    folder: Path
    settings: TrainSettings
    stage: Stage
    rank: int = 0
    size: int = 1
    port: int = 0
    timeout: float = 60.0
    before: Callable[[int, int], None] | None = None
    sources: str = "mixed"
    evaluate: Evaluate = evaluate
    own_folder: Path | None = None  # where the second rank looks

    def __call__(self) -> None:
        torch.set_num_threads(1)
        os.fsync = lambda descriptor: None  # slow, and nobody cuts the power
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port), "LOCAL_RANK": "0"}
        os.environ |= {"WORLD_SIZE": str(self.size), "RANK": str(self.rank)}
        try:
            with Stop.on_signals() as stop, joined(timeout=self.timeout):
                self.train(stop=stop)
        except OwlError as error:
            said(self.folder, self.rank).write_text(str(error))
            sys.exit(exit_code(error))

    def train(self, **more: Any) -> Trainer:
        model = small_owl()
        for layer in model.abstractor.encoder.layers:
            layer.crossattention.attention.dropout = 0.0  # it draws differently for each cut
        folder = self.own_folder if self.rank and self.own_folder else self.folder
        more = {"evaluate": self.evaluate} | more
        run = Trainer(model, self.stage, self._sources(), self.settings, folder, **more)
        if self.before is not None:
            update, before = run.update, self.before
            run.update = lambda batches: (before(self.rank, run.step), update(batches))[1]  # type: ignore[method-assign]
        run.run()
        return run

    def _sources(self) -> list[Source]:
        text = Source("text", made_up, size=11)
        pictures = Source("pictures", lambda index: made_up(index, pictures=1 + index % 2), weight=2.0)
        if self.stage == STAGE1:
            return [pictures]
        mixtures = {"mixed": [text, pictures], "text": [text], "few": [Source("few", few_pictures)]}
        return mixtures[self.sources]


def few_pictures(index: int) -> EncodedSample:
    """Of two ranks the first never sees a picture, the second one early in an update of eight samples."""
    return made_up(index, pictures=int(index % 8 == 3))


def said(folder: Path, rank: int) -> Path:
    return folder.parent / f"{folder.name}.rank{rank}"


def pair(folder: Path, settings: TrainSettings, stage: Stage, **more: Any) -> list[BaseProcess]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [start(Rank(folder, settings, stage, rank, 2, port, **more)) for rank in (0, 1)]


def codes(processes: list[BaseProcess], seconds: float = 90.0) -> list[int | None]:
    """How they ended; None for one that has not within the time."""
    deadline = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    found = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return found
