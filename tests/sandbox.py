"""Reading hostile files in a process of its own, where a crash, a hang or a full memory harms no one.

`python -m tests.sandbox MODULE:FUNCTION` calls FUNCTION(case) for each case (a JSON list on stdin) and prints
one line of JSON on each.
"""

from __future__ import annotations

import importlib
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.memory import MemoryPeak, resident_bytes
from owl_fast.errors import OwlError

ROOT = Path(__file__).resolve().parents[1]
CASE_SECONDS = 10  # processor time, not clock: the machine may be busy
ADDRESS_SPACE = 4 << 30  # beyond what the process has after its imports


@dataclass(frozen=True)
class Outcome:
    """kind: "read" (text is what the function returned), "refused" (an OwlError, its text), "failed" (another
    exception, its type and text) or "died" (the signal). grown: bytes of anonymous memory at the peak."""

    case: str
    kind: str
    text: str
    grown: int


def watch(function: str, cases: Sequence[object], warm_up: object) -> list[Outcome]:
    """The outcome of each case; after a death the process is started anew. warm_up: a case that is read."""
    names = [str(case) for case in cases]
    outcomes: list[Outcome] = []
    while len(outcomes) < len(names):
        done = subprocess.run(
            [sys.executable, "-m", "tests.sandbox", function],
            input=json.dumps([str(warm_up), *names[len(outcomes) :]]),
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        if not lines or lines[0]["kind"] != "read":
            raise AssertionError(f"the case to warm up with was not read: {lines[:1]}\n{done.stderr[-2000:]}")
        outcomes += [Outcome(**line) for line in lines[1:]]
        if done.returncode < 0:
            outcomes.append(
                Outcome(names[len(outcomes)], "died", signal.strsignal(-done.returncode) or "", 0)
            )
        elif done.returncode:
            raise AssertionError(done.stderr[-2000:])
    return outcomes


def main() -> None:
    module, name = sys.argv[1].split(":")
    function: Callable[[str], object] = getattr(importlib.import_module(module), name)
    cases: list[str] = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (space + ADDRESS_SPACE, resource.RLIM_INFINITY))
    for case in cases:
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(used.ru_utime + used.ru_stime) + CASE_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
        print(json.dumps(run(function, case)), flush=True)


def run(function: Callable[[str], object], case: str) -> dict[str, object]:
    before = resident_bytes()
    with MemoryPeak(interval=0.001) as peak:
        try:
            kind, text = "read", str(function(case))
        except OwlError as error:
            kind, text = "refused", str(error)
        except Exception as error:
            kind, text = "failed", f"{type(error).__name__}: {error}"
    return {"case": case, "kind": kind, "text": text, "grown": peak.value - before}


if __name__ == "__main__":
    main()
