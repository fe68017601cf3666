"""The scripts for shells: bash's is run, the others are checked by their shell where it is installed."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from owl_fast import completion
from owl_fast.cli import COMMANDS


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert completion.main([shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["owl-fast", ""], list(COMMANDS)),
        (["owl-fast", "ch"], ["chat"]),
        (["owl-fast", "chat", "--no-h"], ["--no-history"]),
        (["owl-fast", "chat", "--dtype", ""], ["auto", "bf16", "fp16", "fp32"]),
        (["owl-fast", "chat", "--dtype", "="], ["auto", "bf16", "fp16", "fp32"]),
        (["owl-fast", "chat", "--dtype", "=", "b"], ["bf16"]),
        (["owl-fast", "completion", "z"], ["zsh"]),
        (["owl-fast", "doctor", "--vis"], ["--vision-heads"]),
        (["owl-fast", "chat", ""], []),
        (["owl-fast", "fly", "--x"], []),
    ],
    ids=" ".join,
)
@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes(words: list[str], offered: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    typed = " ".join(f"'{word}'" for word in words)
    run = (
        f"COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _owl_fast; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(
        ["bash", "-uc", script("bash", capsys) + run], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_is_in_its_shells_language(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(shell, capsys)
    assert all(f"{name}" in text for name in (*COMMANDS, "no-stream", "bf16"))
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed; its script was only looked at")
    subprocess.run([shell, "-n"], input=text, text=True, check=True)


def test_an_unknown_shell_is_wrong_usage() -> None:
    with pytest.raises(SystemExit) as leaving:
        completion.main(["cmd"])
    assert leaving.value.code == 2
