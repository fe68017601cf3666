"""The `owl-fast NAME` dispatcher."""

from __future__ import annotations

import subprocess
import sys

import pytest

import owl_fast
from owl_fast import cli


def test_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["owl-fast", "--help"])
    assert cli.main() == 0
    assert "chat" in capsys.readouterr().out


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["owl-fast", "--version"])
    assert cli.main() == 0
    assert capsys.readouterr().out == f"owl_fast {owl_fast.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["fly"]])
def test_unknown_command_is_a_usage_error(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["owl-fast", *arguments])
    assert cli.main() == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert all(word in err for word in ["usage", *arguments])


def test_a_misspelt_command_gets_a_hint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["owl-fast", "docter"])
    assert cli.main() == 2
    assert "did you mean doctor?" in capsys.readouterr().err


def test_runs_the_module_as_main(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sees its own arguments, and runs as `python -m` would run it."""
    seen = []
    monkeypatch.setattr(sys, "argv", ["owl-fast", "chat", "-p", "hello"])
    monkeypatch.setattr(cli.runpy, "run_module", lambda name, **how: seen.append((name, how, list(sys.argv))))
    assert cli.main() == 0
    ((name, how, argv),) = seen
    assert (name, how["run_name"]) == ("owl_fast.chat", "__main__")
    assert argv == ["owl-fast chat", "-p", "hello"]


def test_the_package_runs_as_the_command() -> None:
    for arguments, code, said in (
        (["--help"], 0, "usage: owl-fast"),
        (["completion", "bash"], 0, "complete"),
    ):
        command = [sys.executable, "-m", "owl_fast", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (code, "")
        assert said in done.stdout
