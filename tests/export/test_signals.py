"""How an export ends that a signal stops: with its code, whatever libraries make of the exception."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from owl_fast.errors import CheckpointError
from owl_fast.export.command import SIGNALS, exported, unbroken
from tests.export.exports import MODELS


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("made", [RuntimeError("export failed"), CheckpointError("cannot be loaded")])
def test_a_library_that_makes_another_exception_of_it(number: int, made: Exception) -> None:
    def work() -> None:
        try:
            signal.raise_signal(number)
        except BaseException:
            raise made from None

    assert exported(work) == 128 + number


def test_without_a_signal_an_exception_is_what_it_is() -> None:
    def work() -> None:
        raise RuntimeError("a fault")

    with pytest.raises(RuntimeError, match="a fault"):
        exported(work)


def test_what_is_finished_is_not_called_stopped() -> None:
    def work() -> None:
        with suppress(BaseException):  # as in __del__, where Python drops it
            signal.raise_signal(signal.SIGTERM)

    assert exported(work) == 0


@pytest.mark.parametrize("number", SIGNALS)
def test_native_code_is_not_broken_off(number: int) -> None:
    before, done = [signal.getsignal(known) for known in SIGNALS], []

    def work() -> None:
        with unbroken():
            signal.raise_signal(number)
            done.append("native")
        done.append("after")

    assert exported(work) == 128 + number
    assert done == ["native"]
    assert [signal.getsignal(known) for known in SIGNALS] == before


def test_a_second_signal_does_not_wait() -> None:
    done = []

    def work() -> None:
        with unbroken():
            signal.raise_signal(signal.SIGINT)
            done.append("first")
            signal.raise_signal(signal.SIGTERM)
            done.append("second")

    assert exported(work) == 143
    assert done == ["first"]


def test_ctrl_c_that_is_ignored_stays_so() -> None:
    """As in jobs that a shell has put into the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)

    def work() -> None:
        signal.raise_signal(signal.SIGINT)
        with unbroken():
            signal.raise_signal(signal.SIGINT)

    try:
        assert exported(work) == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_int8_at_random_moments(number: int, tmp_path: Path) -> None:
    """While modules are imported, the graph is traced, quantized, loaded, written."""
    flags = ["--int8", "--plain", "--out"]
    command = [sys.executable, "-m", "owl_fast.export.onnx", str(MODELS["micro"].path), *flags]

    def begin(place: Path) -> subprocess.Popen[str]:
        place.mkdir()
        argv = [*command, str(place / "out")]
        return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    start = time.monotonic()
    assert begin(tmp_path / "whole").wait() == 0
    seconds = time.monotonic() - start
    generator, stopped = random.Random(number), 0
    for index in range(12):
        process = begin(place := tmp_path / str(index))
        time.sleep(generator.uniform(0.1, 0.9) * seconds)
        process.send_signal(number)
        said = process.communicate(timeout=60 + seconds)[1]
        names = [path.name for path in place.iterdir()]
        # Before the command has begun, and once it has ended, a signal ends Python in its own way.
        assert process.returncode in (0, 128 + number, -number), said
        if process.returncode == 128 + number:
            assert (names, said.strip()) == ([], "")
            stopped += 1
        else:
            assert names in ([], ["out"])
    assert stopped > 6
