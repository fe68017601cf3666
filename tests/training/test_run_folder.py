"""The lock of a run folder, its metrics file, and the codes a run ends with."""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path

import pytest

from owl_fast.command_line import exit_code
from owl_fast.errors import (
    DataError,
    DiskError,
    DivergedError,
    LockedError,
    OwlError,
    ReaderError,
    StoppedError,
)
from owl_fast.training.metrics import MetricsLog
from owl_fast.training.run_lock import LOCK, RunLock
from tests.training.survivor import Run, children, holds, kill, said, shorter, start, trainer, wait_until


def test_a_second_process_is_sent_away(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = start(Run(folder, slow=1000.0))
    wait_until(lambda: holds(folder, first.pid))
    begin = time.monotonic()
    second = start(Run(folder))
    second.join()
    assert second.exitcode == 6
    assert time.monotonic() - begin < 10  # its start included; the lock itself is waited for 1 s
    assert f"{folder}: process {first.pid} on " in said(folder)
    assert "trains there; wait for it, stop it, or give another folder" in said(folder)
    kill(first)
    first.join()
    third = start(Run(folder, shorter(steps=1)))  # a dead process holds nothing
    third.join()
    assert third.exitcode == 0


def test_readers_of_a_killed_process_let_go(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = start(Run(folder, shorter(workers=2), slow=1000.0))
    wait_until(lambda: len(children(first.pid or 0)) == 2)
    kill(first)
    first.join()
    trainer(folder, shorter(steps=1)).run()


def test_it_is_waited_for_a_moment(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    begin = time.monotonic()
    with pytest.raises(LockedError, match=f"process {os.getpid()} on .* trains there"):
        RunLock(tmp_path)
    assert time.monotonic() - begin < 2
    lock.release()
    lock.release()
    RunLock(tmp_path).release()


def test_a_lock_file_of_the_dead_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text("process 1 on elsewhere")
    RunLock(tmp_path).release()


def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", none)
    RunLock(tmp_path).release()
    assert "knows no locks (Function not implemented)" in caplog.text


def test_a_run_lets_go_in_the_end(tmp_path: Path) -> None:
    run = trainer(tmp_path, shorter(steps=1))
    with pytest.raises(LockedError):
        trainer(tmp_path)
    run.run()
    with pytest.raises(LockedError):  # what the run leaves may still be written
        trainer(tmp_path)
    run.close()
    trainer(tmp_path, shorter(steps=1)).close()


@pytest.mark.parametrize(
    "tail", ["", '{"step": 4, "lo', "\n", "null\n", '{"step": 9}\n{"step": 2}\n', "\x00\x00\n"]
)
def test_metrics_go_on_behind_the_snapshot(tail: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3)) + tail)
    log = MetricsLog(path, 2)
    log.append({"step": 3, "loss": 0.5})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1},
        {"step": 2},
        {"step": 3, "loss": 0.5},
    ]


def test_metrics_wait_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, 0)
    log.append({"step": 1})
    real = os.pwrite
    with monkeypatch.context() as patch:

        def full(descriptor: int, data: bytes, place: int) -> int:
            if len(data) < 6:
                raise OSError(28, "No space left on device")
            return real(descriptor, data[:-5], place)

        patch.setattr(os, "pwrite", full)
        log.append({"step": 2})
        log.append({"step": 3})
    assert log.waiting
    log.append({"step": 4})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]
    assert not log.waiting


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DiskError("x"), 3),
        (DivergedError("x"), 4),
        (LockedError("x"), 6),
        (StoppedError("x", 15), 143),
        (StoppedError("x", 2), 130),
        (ReaderError("x"), 1),
        (DataError("x"), 1),
        (OwlError("x"), 1),
    ],
    ids=repr,
)
def test_exit_codes(error: OwlError, code: int) -> None:
    assert exit_code(error) == code
