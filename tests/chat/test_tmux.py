"""The chat in tmux with the bundled model: turns about a picture, a paste, another size, the way out."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chat.terminals import TmuxTerminal, environment
from tests.golden_data import GOLDEN

ROOT = GOLDEN.parent.parent
pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[TmuxTerminal]:
    command = [sys.executable, "-m", "owl_fast.chat", "--device", "cpu"]
    with TmuxTerminal(command, ROOT, environment(tmp_path)) as opened:
        yield opened


def test_a_conversation(terminal: TmuxTerminal) -> None:
    terminal.wait_for("ready: owl-nano fp32 · cpu")
    terminal.wait_for("· /help")
    terminal.keys("/image exam", "Tab", "sce", "Tab", "Enter")
    terminal.wait_for("picture 1: scene.png, 224 x 224")
    terminal.wait_for("1 picture(s) waiting")
    terminal.keys("What color is the star?", "Enter")
    terminal.wait_for("The star is red.\n")
    terminal.wait_for("/2048 · /help")

    # A second turn about the same picture; then its question is changed.
    terminal.keys("What color is the circle?", "Enter")
    terminal.wait_for(lambda text: text.count(" tok/s") == 2 and text.rstrip().endswith("/help"))
    terminal.keys("/edit", "Enter")
    terminal.wait_for(lambda text: text.count(">>> What color is the circle?") == 2)
    terminal.keys("C-w", "C-w", "the star?", "Enter")
    terminal.wait_for(lambda text: text.count(" tok/s") == 3 and text.rstrip().endswith("/help"))
    assert terminal.text.count("The star is red.\n") == 2

    # Alt-Enter, and a paste whose lines would otherwise run.
    terminal.keys("one", "M-Enter", "two")
    terminal.wait_for(">>> one\n... two")
    terminal.keys("C-c")
    terminal.paste("/exit\n/exit\nlast")
    terminal.wait_for(">>> /exit\n... /exit\n... last")
    terminal.keys("C-c")

    # Another size: the next prompt fits it.
    terminal.resize(60, 24)
    terminal.keys("/tokens", "Enter")
    terminal.wait_for("the conversation takes")
    terminal.keys("/show memory", "Enter")
    terminal.wait_for("together")

    terminal.keys("C-d")
    text = terminal.wait_for("left with 0")
    settings = terminal.wait_for("speed").split("left with 0")[1].split()
    assert {"echo", "icanon", "isig", "icrnl", "opost"} <= set(settings)
    assert "Traceback" not in text
