"""Which evaluation a word means."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from owl_fast.evaluate.command import main


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["owleval", "rat", "study"], "no evaluation 'owleval rat'; did you mean 'owleval rate'?"),
        (["owleval", "reprot"], "did you mean 'owleval report'?"),
        (["owlevl"], "invalid choice: 'owlevl'"),
        ([], "the following arguments are required: evaluation"),
        (["owleval", "models"], "the following arguments are required: --data, --out"),
    ],
    ids=" ".join,
)
def test_a_slip_is_told(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(words)
    assert leaving.value.code == 2
    assert said in capsys.readouterr().err


def test_a_model_may_be_called_like_a_word_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rats").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["owleval", "rats", "--data", "nowhere", "--out", "study"]) == 1
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("evaluation", ["owleval", "nano", "report"])
def test_ctrl_c_while_it_starts(evaluation: str) -> None:
    """Python's imports are no place for a traceback."""
    code = (
        "import signal, sys, importlib.abc\n"
        "class Stop(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == 'owl_fast.evaluate.{evaluation}': signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Stop())\n"
        f"sys.argv = ['evaluate', *{['owleval', 'report'] if evaluation == 'report' else [evaluation]!r}]\n"
        "import runpy; runpy.run_module('owl_fast.evaluate', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
