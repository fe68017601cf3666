"""A small run in a process of its own, to be killed, stopped and starved by tests.

Processes are forked from a server that has imported everything and computed nothing: they start in no time.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # optimizers import it when they are made
from safetensors.torch import load_file

from owl_fast.command_line import exit_code
from owl_fast.errors import OwlError
from owl_fast.models.owl import Owl
from owl_fast.training import EncodedSample, OptimizerSettings, Source, Trainer, TrainSettings, stage2
from owl_fast.training.snapshots import newest_snapshot
from owl_fast.training.stopping import Stop
from tests.training.owls import made_up, small_owl, without_times

SETTINGS = TrainSettings(
    steps=40,
    batch=4,
    micro_batch=2,
    optimizer=OptimizerSettings(lr=1e-2, warmup=2),
    save_every=1,
    eval_every=5,
    progress=False,
)
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["tests.training.survivor"])


@dataclass(frozen=True)
class Run:
    """slow: seconds that reading a sample takes. What an error says is left beside the folder."""

    folder: Path
    settings: TrainSettings = SETTINGS
    slow: float = 0.0

    def __call__(self) -> None:
        torch.set_num_threads(1)
        os.fsync = lambda descriptor: None  # slow, and nobody cuts the power
        with Stop.on_signals() as stop:
            try:
                trainer(self.folder, self.settings, slow=self.slow, stop=stop).run()
            except OwlError as error:
                (self.folder.parent / f"{self.folder.name}.said").write_text(str(error))
                sys.exit(exit_code(error))


def trainer(folder: Path, settings: TrainSettings = SETTINGS, slow: float = 0.0, **more: Any) -> Trainer:
    def pictures(index: int) -> EncodedSample:
        time.sleep(slow)
        return made_up(index, pictures=1 + index % 2)

    sources = [Source("text", made_up, weight=1.0, size=11), Source("pictures", pictures, weight=2.0)]
    more = {"evaluate": evaluate, "sources": sources} | more
    return Trainer(small_owl(), stage2(), more.pop("sources"), settings, folder, **more)


def evaluate(model: Owl, step: int) -> dict[str, float]:
    return {"drawn": torch.rand(()).item(), "norm": model.query_tokens.norm().item()}


def start(work: Callable[[], None]) -> BaseProcess:
    process = _server.Process(target=work)
    process.start()
    return process


def said(folder: Path) -> str:
    return (folder.parent / f"{folder.name}.said").read_text()


def metrics(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return without_times([json.loads(line) for line in lines if line.endswith("\n")])


def assert_same_run(one: Path, two: Path, upto: int = SETTINGS.steps) -> None:
    """Bit-equal weights, optimizer and metrics after update `upto`, the newest of both."""
    newest = [newest_snapshot(folder) for folder in (one, two)]
    assert newest[0] is not None
    assert newest[1] is not None
    assert [path.name for path in newest if path] == [f"checkpoint-{upto}"] * 2
    for stem in ("model", "optimizer"):
        theirs, ours = (load_file(path / f"{stem}.safetensors") for path in newest if path)
        assert theirs.keys() == ours.keys()
        assert [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])] == []
    assert metrics(one)[:upto] == metrics(two)[:upto]
    assert len(metrics(one)) >= upto


def children(pid: int) -> set[int]:
    """Processes whose parent it is."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # gone meanwhile
        if int(fields[1]) == pid and fields[0] != "Z":
            found.add(int(stat.parent.name))
    return found


def holds(folder: Path, pid: int | None) -> bool:
    """Whether the process has locked the run folder."""
    lock = folder / "run.lock"
    return lock.exists() and lock.read_text().startswith(f"process {pid} on")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"still waiting after {seconds} s")
        time.sleep(0.005)


def wait_somewhere(folder: Path, process: BaseProcess, rng: random.Random) -> None:
    """Until the process is somewhere in one of its next three updates, however slow the machine is."""
    wait_until(lambda: holds(folder, process.pid) or not process.is_alive())
    wanted = len(metrics(folder)) + rng.randrange(3)
    wait_until(lambda: len(metrics(folder)) >= wanted or not process.is_alive())
    time.sleep(rng.uniform(0.0, 0.05))


def kill(process: BaseProcess, number: signal.Signals = signal.SIGKILL) -> None:
    """Unless it is through already."""
    assert process.pid is not None
    with suppress(ProcessLookupError):
        os.kill(process.pid, number)


def shorter(**changes: Any) -> TrainSettings:
    return replace(SETTINGS, **changes)
