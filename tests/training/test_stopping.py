"""Signals: the run saves, ends with 143 or 130, leaves no process behind and resumes bit-equal."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from owl_fast.errors import StoppedError
from owl_fast.models.owl import Owl
from owl_fast.training.stopping import Stop, StopRequested
from tests.training.survivor import (
    Run,
    alive,
    assert_same_run,
    children,
    evaluate,
    kill,
    said,
    shorter,
    start,
    trainer,
    wait_somewhere,
    wait_until,
)

SETTINGS = shorter(steps=25)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    trainer(folder, SETTINGS).run()
    return folder


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_at_random_moments(number: signal.Signals, whole: Path, tmp_path: Path) -> None:
    """Ten times each, with readers in every second life; the last life goes to the end."""
    rng, folder = random.Random(number), tmp_path / "stopped"
    codes = []
    for life in range(10):
        process = start(Run(folder, shorter(steps=25, workers=2 * (life % 2)), slow=0.002))
        wait_somewhere(folder, process, rng)
        readers = children(process.pid or 0)
        begin = time.monotonic()
        kill(process, number)
        process.join(30)
        assert time.monotonic() - begin < 30
        codes.append(process.exitcode)
        assert not any(map(alive, readers))
    assert set(codes) <= {128 + number, 0}
    assert codes.count(128 + number) >= 5
    process = start(Run(folder, SETTINGS))
    process.join()
    assert process.exitcode == 0
    assert_same_run(folder, whole, upto=25)


def stopping_when(moment: Any, folder: Path, whole: Path, **changes: Any) -> None:
    """A signal arrives where `moment(trainer, send)` puts it."""
    stopped = []

    def send() -> None:
        if not stopped:
            stopped.append(1)
            os.kill(os.getpid(), signal.SIGTERM)

    with Stop.on_signals() as stop:
        run = trainer(folder, SETTINGS, stop=stop, **changes)
        moment(run, send)
        with pytest.raises(StoppedError, match="SIGTERM ended the run after update") as caught:
            run.run()
        assert caught.value.signal == signal.SIGTERM
    trainer(folder, SETTINGS).run()
    assert_same_run(folder, whole, upto=25)


@pytest.mark.parametrize("number", [0, 1, 2, 11, 49])
def test_stopped_within_an_update(number: int, whole: Path, tmp_path: Path) -> None:
    """The gradient of the micro-batches that were done is dropped, and made again."""

    def moment(run: Any, send: Any) -> None:
        calls = iter(range(10**6))
        run.objective.register_forward_hook(lambda *_: send() if next(calls) == number else None)

    folder = tmp_path / "run"
    stopping_when(moment, folder, whole)


def test_stopped_while_saving(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def moment(run: Any, send: Any) -> None:
        real = run.folder.save

        def save(step: int, *rest: Any) -> bool:
            if step == 7:
                monkeypatch.setattr(os, "rename", lambda *names: (send(), rename(*names))[1])
            return real(step, *rest)

        rename = os.rename
        run.folder.save = save

    stopping_when(moment, tmp_path / "run", whole)


@pytest.mark.parametrize("attentive", [True, False])
def test_stopped_while_evaluating(attentive: bool, whole: Path, tmp_path: Path) -> None:
    """An evaluation that looks is left and made again, with the same random numbers; others finish."""
    seen: list[int] = []

    def moment(run: Any, send: Any) -> None:
        def watching(model: Owl, step: int) -> dict[str, float]:
            seen.append(step)
            torch.rand(5)
            if step == 10:
                send()
                if attentive:
                    run.stop.check()
            torch.manual_seed(0)
            return {}

        def looked(model: Owl, step: int) -> dict[str, float]:
            found = evaluate(model, step)
            watching(model, step)
            return found

        run.evaluate = looked

    folder = tmp_path / "run"
    stopping_when(moment, folder, whole)
    assert seen == [5, 10]
    pending = [json.loads(path.read_text())["pending"] for path in folder.glob("checkpoint-*/state.json")]
    assert pending == [None, None]


def test_stopped_while_waiting_for_data(whole: Path, tmp_path: Path) -> None:
    """A reader that hangs does not hold up the end."""
    process = start(Run(tmp_path / "run", shorter(steps=25, workers=2), slow=1000.0))
    wait_until(lambda: len(children(process.pid or 0)) == 2)
    time.sleep(0.1)
    readers = children(process.pid or 0)
    kill(process, signal.SIGTERM)
    process.join(10)
    assert process.exitcode == 143
    assert not any(map(alive, readers))
    assert (
        said(tmp_path / "run")
        == "SIGTERM ended the run after update 0 of 25; started again, it goes on from there"
    )


class Heedless:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self) -> None:
        torch.set_num_threads(1)
        stop_at = shorter(steps=25, workers=2)
        with Stop.on_signals() as stop:
            trainer(self.folder, stop_at, evaluate=lambda *_: time.sleep(1000) or {}, stop=stop).run()


def test_a_second_signal_leaves_at_once(tmp_path: Path) -> None:
    process = start(Heedless(tmp_path / "run"))
    wait_until((tmp_path / "run/checkpoint-4").exists)
    time.sleep(0.2)
    readers = children(process.pid or 0)
    assert len(readers) == 2
    kill(process, signal.SIGTERM)
    process.join(0.5)
    assert process.exitcode is None
    kill(process, signal.SIGTERM)
    process.join(5)
    assert process.exitcode == -signal.SIGTERM
    wait_until(lambda: not any(map(alive, readers)), 5)


def test_nothing_is_saved_where_snapshots_are_off(tmp_path: Path) -> None:
    stop = Stop()
    run = trainer(tmp_path, shorter(save_every=0), stop=stop)
    run.objective.register_forward_hook(lambda *_: setattr(stop, "signal", signal.SIGINT))
    with pytest.raises(StoppedError, match=r"SIGINT ended .* nothing was saved: snapshots are off"):
        run.run()
    assert list(tmp_path.glob("checkpoint-*")) == []


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with Stop.on_signals() as stop:
        stop.check()
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(StopRequested):
            stop.check()
        with pytest.raises(StopRequested), stop.interruptible():
            raise AssertionError
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
