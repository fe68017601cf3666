"""benchmarks/run.py end to end on a small folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/run.py", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_load_writes_rows_and_leaves_nothing(tmp_path: Path) -> None:
    out, work = tmp_path / "out.json", tmp_path / "work"
    work.mkdir()
    done = run("load", "--model", "tiny", "--device", "cpu", "--work-dir", work, "--json", out)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert {"device", "versions", "commit", "date", "rows"} <= report.keys()
    memory = [row for row in report["rows"] if row["metric"] == "peak memory"]
    assert memory
    assert all(0 < row["limit_fraction"] <= 1 for row in memory)
    assert not list(work.iterdir())


def test_unknown_case_names_the_known_ones() -> None:
    done = run("speed")
    assert done.returncode == 2
    assert "load" in done.stderr
    assert "Traceback" not in done.stderr
