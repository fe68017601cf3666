"""The README's Python blocks run, in order, as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)


def test_python_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("examples", "owl_fast"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    assert len(BLOCKS) >= 8
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)
    assert names["answer"].text == names["text"] == "The star is red."
    assert (tmp_path / "conversation.json").is_file()
    assert (tmp_path / "my-owl/config.json").is_file()
    assert capsys.readouterr().out.count("The star is red.") >= 3
