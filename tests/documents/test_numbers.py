"""docs/numbers.md says of every result where, when and at which commit it was measured, as the files do."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/numbers.md").read_text(encoding="utf-8")
LINES = re.findall(r"^\| ([\w.-]+\.json) \| (\w+) \| ([\d-]+) \| (\w+\+?) \|$", PAGE, re.M)


def test_every_result_is_listed_as_it_was_made() -> None:
    assert len(LINES) >= 10
    for name, machine, date, commit in LINES:
        found = json.loads((ROOT / "benchmarks/results" / name).read_text(encoding="utf-8"))
        assert machine in found["device"]["cpu"], name
        assert found["date"][:10] == date, name
        assert found["commit"][:7] + "+" * found["commit"].endswith("+") == commit, name
