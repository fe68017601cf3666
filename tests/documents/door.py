"""A shell whose programs are calls into this process: starting Python and torch for each would take seconds.

bash reads the commands, so quotes, pipes, comments and continued lines are what they are to a reader. On its
PATH there are only doors, which pass on arguments, folder, environment and open files, and a few plain tools.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

TOOLS = ("cat", "cp", "mkdir", "rm")
CLIENT = """#!{python} -SE
import json, os, socket, sys

with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
    door.connect({address!r})
    call = [[os.path.basename(sys.argv[0]), *sys.argv[1:]], os.getcwd(), dict(os.environ)]
    socket.send_fds(door, [json.dumps(call).encode()], [0, 1, 2])
    sys.exit(int(door.recv(9)))
"""
# The stamps of what `make` has installed are taken as they are, and its programs are the doors.
MAKE = """#!/bin/sh
exec {make} {stamps} BIN={doors} "$@"
"""


@dataclass(frozen=True)
class Call:
    """A program that was started: its words, folder, environment, and stdin, stdout and stderr."""

    words: list[str]
    folder: str
    environment: dict[str, str]
    files: list[int]

    @property
    def text(self) -> str:
        return " ".join(self.words)

    @contextlib.contextmanager
    def taken_on(self) -> Iterator[None]:
        """This process stands where the program would."""
        with contextlib.ExitStack() as stack:
            stack.callback(os.chdir, os.getcwd())
            stack.enter_context(_replaced(os.environ, self.environment))
            stack.enter_context(_streams(self.files))
            for name in ("argv", "path"):
                stack.callback(setattr, sys, name, list(getattr(sys, name)))
            for number in (signal.SIGINT, signal.SIGTERM):
                stack.callback(signal.signal, number, signal.getsignal(number))
            os.chdir(self.folder)
            yield

    def code_of(self, work: Callable[[], None]) -> int:
        """The exit code of work() as a program: what it leaves with; 0 at its end, 1 after a traceback."""
        with self.taken_on():
            try:
                work()
            except SystemExit as leaving:
                if isinstance(leaving.code, str):
                    print(leaving.code, file=sys.stderr)
                return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
            except Exception:
                traceback.print_exc()
                return 1
            return 0

    def started(self, *command: str, **environment: str) -> int:
        """The exit code of a process of its own."""
        stdin, stdout, stderr = self.files
        everything = self.environment | environment
        done = subprocess.run(
            command, cwd=self.folder, env=everything, stdin=stdin, stdout=stdout, stderr=stderr, timeout=300
        )
        return done.returncode


@contextlib.contextmanager
def _replaced(environ: os._Environ[str], values: Mapping[str, str]) -> Iterator[None]:
    kept = dict(environ)
    for name in kept.keys() - values.keys():
        del environ[name]
    environ.update(values)
    try:
        yield
    finally:
        for name in environ.keys() - kept.keys():
            del environ[name]
        environ.update(kept)


@contextlib.contextmanager
def _streams(files: list[int]) -> Iterator[None]:
    """stdin, stdout and stderr are these files, for Python and for everything below it."""
    python = sys.stdin, sys.stdout, sys.stderr
    below = [os.dup(number) for number in range(3)]
    for stream in python[1:]:
        stream.flush()
    for number, file in enumerate(files):
        os.dup2(file, number)
    modes = ("r", "w", "w")
    streams = [open(n, mode, encoding="utf-8", closefd=False) for n, mode in enumerate(modes)]  # noqa: SIM115
    sys.stdin, sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        for stream in streams[1:]:
            stream.flush()
        sys.stdin, sys.stdout, sys.stderr = python
        for number, file in enumerate(below):
            os.dup2(file, number)
            os.close(file)


class Shell:
    """bash in `folder`; programs: the names whose calls `answer` carries out, giving the exit code."""

    def __init__(self, folder: Path, aside: Path, programs: tuple[str, ...], stamps: list[str]) -> None:
        self.folder, self._aside = folder, aside
        doors = aside / "bin"
        doors.mkdir()
        address = f"\0owl-doors-{os.getpid()}-{id(self)}"  # no file, whose path might be too long
        (doors / "python").write_text(CLIENT.format(python=sys.executable, address=address))
        for name in {*programs} - {"python"}:
            (doors / name).symlink_to("python")
        for name in TOOLS:
            (doors / name).symlink_to(shutil.which(name) or f"/bin/{name}")
        old = " ".join(f"-o .venv/{stamp}" for stamp in stamps)
        (doors / "make").write_text(MAKE.format(make=shutil.which("make"), stamps=old, doors=doors))
        for name in ("python", "make"):
            (doors / name).chmod(0o755)
        self._typed = aside / "typed"
        self._typed.write_text("What color is the star?\n")
        self._environment = {**os.environ, "PATH": str(doors), "HOME": str(aside / "home")}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(address)
        self._listener.listen()
        self._listener.settimeout(0.02)

    def close(self) -> None:
        self._listener.close()

    def run(self, script: str, answer: Callable[[Call], int]) -> tuple[int, str]:
        """Exit code and output (stdout and stderr) of commands; the first that fails is the last."""
        written = self._aside / "output"
        with self._typed.open("rb") as typed, written.open("wb") as output:
            bash = subprocess.Popen(
                ["/bin/bash", "-c", f"set -eo pipefail\n{script}"],
                cwd=self.folder,
                env=self._environment,
                stdin=typed,
                stdout=output,
                stderr=output,
            )
            codes = list(self._attend(bash, answer))
        code = bash.returncode or next(filter(None, codes), 0)
        return code, written.read_text(encoding="utf-8", errors="replace")

    def _attend(self, bash: subprocess.Popen[bytes], answer: Callable[[Call], int]) -> Iterator[int]:
        while True:
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                if bash.poll() is not None:
                    return
                continue
            with connection:
                connection.settimeout(10)
                message, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
                with contextlib.suppress(OSError):  # a pipe
                    os.lseek(files[0], 0, os.SEEK_SET)  # every program finds what was typed from its start
                try:
                    code = answer(Call(*json.loads(message), files))
                finally:
                    for file in files:
                        os.close(file)
                connection.send(str(code).encode())
            yield code
