"""The loop of the phases before the paper's stages: warm-up of the tower, language of the LLaMA.

As in the package's own loop an update depends on the weights, the optimizer, the seed and its number alone;
the processes share its samples; a phase goes on from its newest snapshot.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from owl_fast.training.optimizer import (
    learning_rate,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)
from owl_fast.training.ranks import Ranks
from owl_fast.training.snapshots import load_snapshot, newest_snapshot, prune_snapshots, save_snapshot
from recipes.owl_nano.optimizer import muon_adamw
from recipes.owl_nano.parallel import sum_gradients_
from recipes.owl_nano.settings import ADAMW_LR, MAX_GRADIENT_NORM, Schedule

MUON_DECAY = 0.01
EVERY = 100  # updates between snapshots, and between lines of metrics.jsonl

Numbers = dict[str, float]
Loss = Callable[[int], tuple[Tensor, Numbers]]


def run_updates(
    parameters: dict[str, nn.Parameter],
    schedule: Schedule,
    folder: Path,
    loss: Loss,
    memory: Numbers | None = None,
    evaluate: Callable[[], Numbers] | None = None,
) -> None:
    """Train in place.

    loss(step) -> the loss of this process's share of the samples, and numbers whose means are recorded.
    memory: what loss keeps from one update to the next; at every snapshot it becomes its mean over the
    processes, so that they resume as they would have gone on. evaluate: further numbers.
    """
    ranks = Ranks.current()
    settings = schedule.optimizer()
    optimizer = muon_adamw(parameters, settings.lr, ADAMW_LR, decay=MUON_DECAY)
    memory = {} if memory is None else memory
    start = _resume(folder, parameters, optimizer, memory)
    ranks.wait()  # no snapshot is written before every process has looked for one
    begin, recent = time.monotonic(), []
    steps = range(start, schedule.steps)
    for step in tqdm(steps, initial=start, total=schedule.steps, disable=not ranks.leads):
        set_learning_rate(optimizer, learning_rate(step, schedule.steps, settings))
        value, numbers = loss(step)
        torch.autograd.backward(value / ranks.size)
        sum_gradients_(list(parameters.values()), ranks)
        nn.utils.clip_grad_norm_(parameters.values(), MAX_GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad()
        recent.append({"loss": value.item(), **numbers})
        if (step + 1) % EVERY and step + 1 < schedule.steps:
            continue
        _share(memory, ranks)
        if ranks.leads:
            seconds = {"seconds": round(time.monotonic() - begin, 1)}
            with torch.no_grad():
                further = evaluate() if evaluate else {}
            line = {"step": step + 1, **seconds, **_means(recent), **memory, **further}
            with (folder / "metrics.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
            tensors: dict[str, Mapping[str, Tensor]] = {
                "model": parameters,
                "optimizer": optimizer_tensors(optimizer, parameters),
            }
            save_snapshot(folder, step + 1, tensors, memory)
            prune_snapshots(folder, 1, step + 1)
        recent.clear()


def _resume(
    folder: Path, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, memory: Numbers
) -> int:
    """Put the newest snapshot in place and return its step, 0 where there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    path = newest_snapshot(folder)
    if path is None:
        return 0
    tensors, state = load_snapshot(path)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors["model"][name])
    load_optimizer_tensors(optimizer, parameters, tensors["optimizer"])
    memory.update(state)
    return int(path.name.rpartition("-")[2])


def _share(memory: Numbers, ranks: Ranks) -> None:
    total = ranks.sum(*memory.values())
    memory.update(zip(memory, (value / ranks.size for value in total), strict=True))


def _means(lines: list[Numbers]) -> Numbers:
    return {key: round(sum(line[key] for line in lines) / len(lines), 4) for key in lines[0]}
