"""What a test lets torchrun start: `torchrun ... -m tests.training.torchrun_owl FOLDER [RANK:STEP ...]`.

The ranks named die once each, by kill -9, when the update of that number begins.
"""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch

from owl_fast.training.ranks import joined
from owl_fast.training.stopping import Stop
from tests.training.pairs import LONGER, STAGE2, Rank


def die_once(folder: Path, deaths: list[str], rank: int, step: int) -> None:
    mark = folder.parent / f"{folder.name}.died.{rank}"
    if f"{rank}:{step}" in deaths and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    folder, deaths = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    with Stop.on_signals() as stop, joined() as ranks:
        run = Rank(folder, LONGER, STAGE2, ranks.rank, before=partial(die_once, folder, deaths))
        run.train(stop=stop)


if __name__ == "__main__":
    main()
