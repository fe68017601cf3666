"""What is wrong in a document is found by reading alone, and what is right is run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents.commands import PROGRAMS, STAMPS, Commands, Depth
from tests.documents.door import Shell
from tests.documents.pages import ROOT


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "owl_fast", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    shell = Shell(folder, tmp_path_factory.mktemp("aside"), PROGRAMS, STAMPS)
    yield shell
    shell.close()


def code_of(script: str, shell: Shell, depth: Depth = Depth.READ) -> int:
    return shell.run(script, Commands({}).answer(depth))[0]


@pytest.mark.parametrize(
    "script",
    [
        "owl-fast chat --flat",
        "owl-fast chatt",
        "owl-fast train --stage 3 --model MODEL --data a.jsonl --out DIR",
        "owl-fast data check",
        "owl-fast evaluate owleval repor study",
        "python -m owl_fast.nothing",
        "python -m owl_fast.chat --flat",
        "python benchmarks/none.py",
        "python benchmarks/run.py nothing",
        "torchrun --nproc-per-node 2 -m owl_fast.train --stage 3",
        "torchrun --nproc 2 --no-such -m owl_fast.train",
        "serve run owl_fast.serving.ray_app:build modell=DIR",
        "pip install '.[nothing]'",
        "pip install no-such-package",
        "pip install -c no-such-file .",
        "pip instal .",
        "make nothing",
        "make chat ARGS='--flat'",
        "git push",
        "owl-fast chat --flat | cat",
        "owl-fast chat --flat && make chat",
        "owl-fast chat -p 'open",
        'eval "$(owl-fast completion bosh)"',
    ],
)
def test_wrong_commands(script: str, shell: Shell) -> None:
    assert code_of(f"{script}\n", shell) != 0


@pytest.mark.parametrize(
    "script",
    [
        "owl-fast chat -i a.jpg -p 'a \"b\"'  # a comment",
        "owl-fast data check \\\n    llava.json --images 'a b'",
        "cat Makefile | owl-fast chat -i - -p what",
        "pip install -c constraints.txt '.[hub,onnx]'",
        "CMAKE_ARGS=-DX pip install --no-deps --no-binary llama-cpp-python llama-cpp-python",
        "torchrun --nproc-per-node 2 -m owl_fast.train --stage 2 --model M --data D --out O",
        "serve run owl_fast.serving.ray_app:build model=DIR",
        "make chat ARGS='-i a.jpg -p \"b c\"'",
        "make serve test",
    ],
)
def test_commands_that_are_read(script: str, shell: Shell) -> None:
    assert code_of(f"{script}\n", shell) == 0


@pytest.mark.parametrize(
    ("spoken", "right"),
    [("owl-fast train --quant", True), ("owl-fast train --quantity", False), ("owl-fast data --out", True)],
)
def test_flags_of_what_is_not_whole(spoken: str, right: bool, shell: Shell) -> None:
    assert (code_of(spoken, shell, Depth.FLAGS) == 0) is right


def test_what_runs_leaves_this_process_as_it_was(shell: Shell) -> None:
    before = dict(os.environ), os.getcwd(), list(sys.argv), list(sys.path), sys.stdout, sys.stdin
    script = "export OWL_API_KEY=none\nmkdir a\ncd a\nowl-fast chat --top-k 7 --print-config | cat > a.toml\n"
    assert code_of(script, shell, Depth.RUN) == 0
    assert (dict(os.environ), os.getcwd(), sys.argv, sys.path, sys.stdout, sys.stdin) == before
    assert "top-k = 7" in (shell.folder / "a/a.toml").read_text()


def test_output_and_what_was_typed(shell: Shell) -> None:
    script = "python -m tests.documents.echo one\npython -m tests.documents.echo two >&2\n"
    code, output = shell.run(script, Commands({}).answer(Depth.RUN))
    assert (code, output) == (0, "one: What color is the star?\ntwo: What color is the star?\n")


def test_nothing_follows_a_failure(shell: Shell, tmp_path: Path) -> None:
    script = f"owl-fast chat --flat\ncp Makefile {tmp_path}/copy\n"
    code, output = shell.run(script, Commands({}).answer(Depth.RUN))
    assert code == 2
    assert "unrecognized arguments: --flat" in output
    assert not (tmp_path / "copy").exists()
