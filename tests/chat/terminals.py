"""Real terminals to run the chat in: a pty whose screen pyte draws, and tmux."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shlex
import signal
import struct
import subprocess
import termios
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyte

PATIENCE = 120.0  # seconds after which a screen that never comes is a failure
UP, TAB, CTRL_C, CTRL_D, CTRL_R, ENTER, ALT_ENTER = "\x1b[A", "\t", "\x03", "\x04", "\x12", "\r", "\x1b\r"


def pasted(text: str) -> str:
    """As a terminal sends what is pasted, after it was asked to mark pastes."""
    return f"\x1b[200~{text}\x1b[201~"


def environment(home: Path, **changes: str) -> dict[str, str]:
    kept = {
        name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ
    }
    own = {"HOME": str(home), "TERM": "xterm-256color", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"}
    return {**kept, **own, **changes}


class PtyTerminal:
    """A command in a pseudo terminal. `seen` is everything it ever wrote, escape sequences included."""

    def __init__(
        self, command: Sequence[str], cwd: Path, env: Mapping[str, str], columns: int = 100, rows: int = 40
    ) -> None:
        self.seen = b""
        self._screen = pyte.HistoryScreen(columns, rows, history=1000)
        # A terminal answers when it is asked where the cursor is.
        self._screen.write_process_input = self.send  # type: ignore[method-assign]
        self._stream = pyte.ByteStream(self._screen)
        self._master, self.slave = pty.openpty()
        self._set_size(columns, rows)
        self.before = termios.tcgetattr(self.slave)
        self.process = subprocess.Popen(
            command,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            cwd=cwd,
            env=dict(env),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def __enter__(self) -> PtyTerminal:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)
        os.close(self.slave)

    def send(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def resize(self, columns: int, rows: int) -> None:
        self._screen.resize(rows, columns)
        self._set_size(columns, rows)
        self.process.send_signal(signal.SIGWINCH)

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, wanted: str | Callable[[str], bool]) -> str:
        """The screen once it shows this; a screen that never does is the failure's message."""
        found = wanted if callable(wanted) else (lambda text: wanted in text)
        deadline = time.monotonic() + PATIENCE
        while not found(self.text):
            if time.monotonic() > deadline or (not self._read(0.1) and self.process.poll() is not None):
                raise AssertionError(f"{wanted!r} never came; the screen:\n{self.text}")
        return self.text

    def end(self) -> int:
        """The exit code, once the command has ended and all it wrote is read."""
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it never ended; the screen:\n{self.text}"
            self._read(0.05)
        while self._read(0.05):
            pass
        return self.process.returncode

    def is_restored(self) -> bool:
        """The line settings are as before; the cursor shows, pastes are not marked, nothing is coloured."""
        cursor = self._screen.cursor
        plain = not self._screen.cursor.hidden and cursor.attrs.fg == "default" and not cursor.attrs.bold
        marked = self.seen.rfind(b"\x1b[?2004h") > self.seen.rfind(b"\x1b[?2004l")
        return termios.tcgetattr(self.slave) == self.before and plain and not marked

    def _read(self, seconds: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], seconds)
        if not ready:
            return False
        data = os.read(self._master, 65536)
        self.seen += data
        self._stream.feed(data)
        return True

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


class TmuxTerminal:
    """A shell in a tmux of its own; the command is started in it and leaves its exit code behind."""

    def __init__(
        self, command: Sequence[str], cwd: Path, env: Mapping[str, str], columns: int = 100, rows: int = 40
    ) -> None:
        self._server = ["tmux", "-L", f"owl-{uuid.uuid4().hex[:8]}", "-f", "/dev/null"]
        line = f'{shlex.join(command)}; echo "left with $?"; stty -a; exec sleep 600'
        size = ["-x", str(columns), "-y", str(rows)]
        subprocess.run([*self._server, "new-session", "-d", *size, line], cwd=cwd, env=dict(env), check=True)

    def __enter__(self) -> TmuxTerminal:
        return self

    def __exit__(self, *exception: object) -> None:
        self._run("kill-server")

    def keys(self, *keys: str) -> None:
        """Keys by tmux's names (Enter, C-c, M-Enter, Up), anything else literally."""
        self._run("send-keys", *keys)

    def paste(self, text: str) -> None:
        """Through tmux's own paste buffer, marked as a paste when the program asked for it."""
        subprocess.run([*self._server, "load-buffer", "-"], input=text, text=True, check=True)
        self._run("paste-buffer", "-p")

    def resize(self, columns: int, rows: int) -> None:
        self._run("resize-window", "-x", str(columns), "-y", str(rows))

    @property
    def text(self) -> str:
        """The screen and what has scrolled out of it."""
        return self._run("capture-pane", "-p", "-S", "-500")

    def wait_for(self, wanted: str | Callable[[str], bool]) -> str:
        found = wanted if callable(wanted) else (lambda text: wanted in text)
        deadline = time.monotonic() + PATIENCE
        while not found(text := self.text):
            assert time.monotonic() < deadline, f"{wanted!r} never came; the screen:\n{text}"
            time.sleep(0.05)
        return text

    def _run(self, *arguments: str) -> str:
        done: Any = subprocess.run([*self._server, *arguments], capture_output=True, text=True, check=True)
        return str(done.stdout)
