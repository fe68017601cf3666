"""The busy process is there within its block, and never after it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import busy
from benchmarks.busy import BusyProcess

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import sys, time
from benchmarks.busy import BusyProcess
with BusyProcess() as process:
    print(process._process.pid, flush=True)
    time.sleep(60)
"""


def state(pid: int) -> str:
    """R, S, T (stopped) and so on; empty when there is none, or only its exit code is left."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if letter in "ZX" else letter


def wait_for(pid: int, states: str | tuple[str, ...]) -> bool:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if state(pid) in states:
            return True
        time.sleep(0.01)
    return False


def test_it_runs_when_told_to_and_ends_with_the_block() -> None:
    with BusyProcess() as process:
        pid = process._process.pid
        assert wait_for(pid, ("T",))
        process.go_on()
        assert wait_for(pid, ("R",))
        process.pause()
        assert wait_for(pid, ("T",))
    assert state(pid) == ""


def test_it_ends_with_a_process_that_is_killed() -> None:
    """Paused, as it is half of the time."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        pid = int(holder.stdout.readline())
        holder.send_signal(signal.SIGKILL)
    assert wait_for(pid, ("",))


def test_it_ends_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy, "SECONDS", 0)
    with BusyProcess() as process:
        process.go_on()
        assert process._process.wait(timeout=20) == 0
        with pytest.raises(ProcessLookupError):
            os.kill(process._process.pid, 0)
