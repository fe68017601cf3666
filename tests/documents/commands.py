"""What becomes of a command of the documents: it is run, or its own parser reads it."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed.run

from tests.documents import tables
from tests.documents.door import Call
from tests.documents.packages import check_pip

ROOT = Path(__file__).resolve().parents[2]
STAMPS = sorted(set(re.findall(r"\$\(VENV\)/(\.installed[\w-]*)", (ROOT / "Makefile").read_text())))
# Others' programs: nothing of them can be looked at.
FOREIGN = ("ruff", "mypy", "pytest", "cmake")
PROGRAMS = ("owl-fast", "python", "python3", "pip", "torchrun", "curl", "serve", *FOREIGN)


class Depth(IntEnum):
    """How much of a command is carried out."""

    FLAGS = 0  # its flags exist; what it needs may be missing, as in the middle of a sentence
    READ = 1  # its parser takes it
    RUN = 2


class Commands:
    """Answers the calls of a shell. hub: what a process needs to ask the hub that is there.

    used: the rows of tables.READ that a command fitted.
    """

    def __init__(self, hub: dict[str, str]) -> None:
        self._hub = hub
        self.used: set[str] = set()

    def answer(self, depth: Depth) -> Callable[[Call], int]:
        return lambda call: self._answer(call, depth)

    def _answer(self, call: Call, depth: Depth) -> int:
        row = next((row for row in tables.READ if re.search(row, call.text)), None)
        if row is not None:
            self.used.add(row)
            depth = min(depth, Depth.READ)
        if depth < Depth.RUN:
            with _only_read(depth):
                return call.code_of(lambda: _here(call.words))
        words = [*call.words, *_smaller(call)]
        for place in tables.MADE_ANEW:
            if f"--out {place} " in f"{call.text} ":
                _remove(Path(call.folder) / place)
        if re.search(tables.SERVERS, call.text):
            return _served(call, _process(words))
        if re.search(tables.APART, call.text) or words[0] == "curl":
            return call.started(*_process(words), **self._hub)
        return call.code_of(lambda: _here(words))


def _smaller(call: Call) -> Iterator[str]:
    for pattern, flags in tables.SMALLER.items():
        if re.search(pattern, call.text):
            yield from (word for flag in flags.items() if flag[0] not in call.words for word in flag)


def _remove(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)


def _here(words: list[str]) -> None:
    """The program with these words, in this process."""
    program, *rest = words
    sys.argv = words
    if program == "owl-fast":
        _python(["-m", "owl_fast", *rest])
    elif program in ("python", "python3"):
        _python(rest)
    elif program == "pip":
        check_pip(rest)
    elif program == "torchrun":
        given = torch.distributed.run.get_args_parser().parse_known_args(rest)[0]
        assert given.module, f"torchrun without -m: {rest}"
        _python(["-m", given.training_script, *given.training_script_args])
    elif program == "serve":
        _ray(rest)
    elif program == "curl":
        json.loads(rest[rest.index("-d") + 1])  # where it asks is seen when it runs
    else:
        assert program in FOREIGN, f"nobody knows how to run {shlex.join(words)}"


def _python(words: list[str]) -> None:
    if words[:2] == ["-m", "pip"]:
        check_pip(words[2:])
    elif words[0] == "-m" and words[1] not in FOREIGN:
        sys.argv = words[1:]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # that other tests have imported the module
            runpy.run_module(words[1], run_name="__main__")
    elif words[0] != "-m":
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def _ray(words: list[str]) -> None:
    """`serve run MODULE:FUNCTION NAME=VALUE ...`, with names that stand in the source: Ray is not here."""
    run, target, *options = words
    module, _, function = target.partition(":")
    source = Path(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
    assert run == "run"
    assert f"def {function}(" in source
    for option in options:
        assert f'"{option.partition("=")[0]}"' in source, option


def _process(words: list[str]) -> list[str]:
    """The same program as a process of its own."""
    program, *rest = words
    if program == "owl-fast":
        return [sys.executable, "-m", "owl_fast", *rest]
    if program == "torchrun":
        return [sys.executable, "-m", "torch.distributed.run", *rest]
    if program.startswith("python"):
        return [sys.executable, *rest]
    return [shutil.which(program) or program, *rest]


def _served(call: Call, command: list[str]) -> int:
    """0 if a server said its address, answered there, and ended well after Ctrl-C."""
    stdin, stdout, stderr = call.files
    with subprocess.Popen(
        command, cwd=call.folder, env=call.environment, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                os.write(stdout, line)
                if found := re.search(rb"http://[\w.:]+", line):
                    with _opener().open(found[0].decode(), timeout=30) as reply:
                        assert reply.status == 200
                    break
        finally:
            process.send_signal(signal.SIGINT)
            code = process.wait(60)
    return 0 if code in (0, 130) else code


def _opener() -> Any:
    """Proxies are no way to this machine."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextlib.contextmanager
def _only_read(depth: Depth) -> Iterator[None]:
    """Programs end, with 0, when their parser has taken the arguments."""
    whole = argparse.ArgumentParser.parse_args

    def parse_args(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> NoReturn:
        if depth == Depth.FLAGS:
            unknown = {w for w in args or sys.argv[1:] if w.startswith("--")} - _flags(self)
            assert not unknown, f"{self.prog} has no {unknown}"
        else:
            whole(self, args, namespace)
        raise SystemExit(0)

    argparse.ArgumentParser.parse_args = parse_args  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        argparse.ArgumentParser.parse_args = whole  # type: ignore[method-assign]


def _flags(parser: argparse.ArgumentParser) -> set[str]:
    """Of a parser and of those of its subcommands."""
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found.update(*map(_flags, action.choices.values()))
    return found
