"""Reader processes: the same batches, one clear error when one dies or hangs, none of them left over."""

from __future__ import annotations

import dataclasses
import faulthandler
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from owl_fast.errors import ReaderError
from owl_fast.training import EncodedSample, Source
from owl_fast.training.read_ahead import read_batches
from owl_fast.training.sources import DrawPlan
from owl_fast.training.updates import UpdateReader
from tests.training.owls import CONFIG, made_up
from tests.training.survivor import assert_same_run, shorter, trainer

HERE = os.getpid()


def reader(get: Callable[[int], EncodedSample]) -> UpdateReader:
    return UpdateReader(DrawPlan([Source("made up", get)], 0), 2, 1, CONFIG.image_rows)


@pytest.mark.parametrize("workers", [1, 3])
def test_the_same_batches_in_the_same_order(workers: int) -> None:
    def get(index: int) -> EncodedSample:
        time.sleep(0.02 * (index % 3))  # later ones are ready sooner
        return made_up(index, pictures=index % 2)

    here, there = (list(read_batches(reader(get), range(3, 9), w, 60)) for w in (0, workers))
    assert len(there) == 6
    for batch, other in zip(here, there, strict=True):
        assert batch.records == other.records
        assert torch.equal(batch.packed.token_ids, other.packed.token_ids)
        assert (batch.pixels is None) == (other.pixels is None)
        assert batch.pixels is None or torch.equal(batch.pixels, other.pixels)
    assert multiprocessing.active_children() == []


def test_none_is_left_when_the_run_stops_early() -> None:
    batches = read_batches(reader(made_up), range(100), 2, 60)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("end", ["killed", "closed"])
def test_one_that_dies_while_it_hands_over(end: str) -> None:
    """Both readers are writing large batches; nobody waits for the rest."""
    large = torch.zeros(3, 1200, 1200)

    def get(index: int) -> EncodedSample:
        return dataclasses.replace(made_up(index, pictures=1), visual=[large])

    batches = read_batches(reader(get), range(100), 2, 60)
    next(batches)
    victims = multiprocessing.active_children()
    time.sleep(0.2)
    if end == "closed":
        batches.close()
    else:
        victims[0].kill()
        with pytest.raises(ReaderError, match="was ended by SIGKILL"):
            list(batches)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("how", "what"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was ended by SIGKILL, often .* too little memory"),
        (lambda: (faulthandler.disable(), os.kill(os.getpid(), signal.SIGBUS)), "was ended by SIGBUS"),
        (lambda: os._exit(7), "ended itself with code 7"),
    ],
    ids=["killed", "bus", "left"],
)
def test_one_that_dies(how: Callable[[], None], what: str, tmp_path: Path) -> None:
    """One error that says what happened; the run goes on bit-equal."""
    settings = shorter(steps=12)

    def get(index: int) -> EncodedSample:
        if index == 25 and os.getpid() != HERE and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            how()
        return made_up(index, pictures=1)

    trainer(tmp_path / "whole", settings, sources=[Source("made up", get)]).run()
    run = trainer(tmp_path / "run", shorter(steps=12, workers=2), sources=[Source("made up", get)])
    with pytest.raises(ReaderError, match=rf"a reader process \(pid \d+\) {what}.*start again") as caught:
        run.run()
    assert "\n" not in str(caught.value)
    assert multiprocessing.active_children() == []
    resumed = trainer(tmp_path / "run", shorter(steps=12, workers=2), sources=[Source("made up", get)])
    assert 0 < resumed.step < 12
    resumed.run()
    assert_same_run(tmp_path / "run", tmp_path / "whole", upto=12)


def test_one_that_hangs(tmp_path: Path) -> None:
    def get(index: int) -> EncodedSample:
        if index == 9:
            time.sleep(1000)
        return made_up(index, pictures=1)

    settings = shorter(workers=2, reader_timeout=1.0)
    run = trainer(tmp_path, settings, sources=[Source("made up", get)])
    begin = time.monotonic()
    with pytest.raises(ReaderError, match="has not delivered its batch for 1 s"):
        run.run()
    assert time.monotonic() - begin < 20
    assert run.step == 2
    assert multiprocessing.active_children() == []
