"""The chat in a pseudo terminal: what is on the screen, and in which state the terminal is left."""

from __future__ import annotations

import re
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.chat.fake_server import FakeServer, answer, chunk
from tests.chat.terminals import (
    ALT_ENTER,
    CTRL_C,
    CTRL_D,
    CTRL_R,
    ENTER,
    TAB,
    UP,
    PtyTerminal,
    environment,
    pasted,
)
from tests.golden_data import GOLDEN, Golden, image_files

ROOT = GOLDEN.parent.parent
CHAT = [sys.executable, "-m", "owl_fast.chat"]
ATTACK = "\x1b[2J\x1b]0;owned\x07\x9b31mred\x1b[?25l\u202e done"
TOOLBAR = "· /help"


class Scripted(FakeServer):
    """Repeats what it is asked; `count` never ends, `pause` ends when it is resumed, `attack` sends control
    sequences, `fail` an error."""

    def __init__(self) -> None:
        super().__init__(self.reply)
        self.counting, self.resumed = threading.Event(), threading.Event()

    def reply(self, request: dict[str, Any]) -> Any:
        content = request["messages"][-1]["content"]
        if not isinstance(content, str):
            content = " ".join(part.get("text", "[picture]") for part in content)
        if content == "count":
            return self._count()
        if content == "pause":
            return self._pause()
        if content == "fail":
            return 500, {"error": {"message": ATTACK}}
        return answer(ATTACK if content == "attack" else f"You said: {content}.")

    def _count(self) -> Iterator[Any]:
        for number in range(1, 1_000_000):
            yield chunk(f"{number} ")
            self.counting.wait(0.01)

    def _pause(self) -> Iterator[Any]:
        yield chunk("so far ")
        self.resumed.wait(60)
        yield from answer("and done.")


@pytest.fixture(scope="module")
def server() -> Iterator[Scripted]:
    scripted = Scripted()
    with scripted.running():
        yield scripted


@contextmanager
def chat(server: FakeServer, home: Path, *flags: str, ready: str = TOOLBAR) -> Iterator[PtyTerminal]:
    """The chat with its prompt shown."""
    command = [*CHAT, "--url", server.url, *flags]
    with PtyTerminal(command, ROOT, environment(home)) as terminal:
        terminal.wait_for(ready)
        yield terminal


def settled(answer: str) -> Callable[[str], bool]:
    """This answer, its statistics, and the next prompt below them."""
    return lambda text: bool(re.search(rf"{re.escape(answer)}\n.*· \w+\n+>>> *(\n|$)", text))


def test_several_turns(server: FakeServer, tmp_path: Path) -> None:
    with chat(server, tmp_path) as terminal:
        terminal.send("hello" + ENTER)
        terminal.wait_for(settled("You said: hello."))

        # Stopped in its middle; what was said stays, and Up brings back what was typed before.
        terminal.send("count" + ENTER)
        terminal.wait_for("1 2 3 4 5")
        terminal.send(CTRL_C)
        terminal.wait_for("· cancelled")
        terminal.wait_for(TOOLBAR)
        terminal.send(UP + UP)
        terminal.wait_for(">>> hello\n")
        terminal.send(CTRL_C)
        terminal.wait_for(lambda text: ">>> hello\n" not in text.split("cancelled")[1])

        # An answer can be had again, its question changed.
        terminal.send("/undo" + ENTER + "")
        terminal.wait_for("taken back: count")
        terminal.send("/edit" + ENTER)
        terminal.wait_for(lambda text: text.count(">>> hello\n") == 2)
        terminal.send(" you" + ENTER)
        terminal.wait_for(settled("You said: hello you."))
        terminal.send("/retry" + ENTER)
        terminal.wait_for("/set temperature 0.7")
        terminal.send("/clera" + ENTER)
        terminal.wait_for("did you mean /clear?")

        # Twice Ctrl-C at an empty prompt.
        terminal.send(CTRL_C)
        terminal.wait_for("Ctrl-C once more leaves.")
        terminal.send(CTRL_C)
        assert terminal.end() == 0
        assert terminal.is_restored()
    messages = [[m["content"] for m in request["messages"]] for request in server.requests]
    assert messages[-1] == messages[-2] == ["hello you"]
    history = tmp_path / ".local/state/owl_fast/history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert '"hello you"\n"/retry"\n' in history.read_text()


def test_several_lines_typed_and_pasted(server: Scripted, tmp_path: Path) -> None:
    with chat(server, tmp_path, "--no-history") as terminal:
        count = len(server.requests)
        terminal.send(f"one{ALT_ENTER}two{ENTER}")
        terminal.wait_for("You said: one\ntwo.")
        terminal.wait_for(TOOLBAR)
        terminal.send(f'"""first{ENTER}')
        terminal.wait_for('>>> """first\n...')
        terminal.send(f'second"""{ENTER}')
        terminal.wait_for("You said: first\nsecond.")
        terminal.wait_for(TOOLBAR)

        # A paste waits for Enter, commands in it do not run.
        terminal.send(pasted("hello\n/exit\nyou\n"))
        terminal.wait_for(">>> hello\n... /exit\n... you")
        assert len(server.requests) == count + 2
        terminal.send(ENTER)
        terminal.wait_for("You said: hello\n/exit\nyou.")
        terminal.wait_for(TOOLBAR)

        # The same from a terminal that does not mark pastes: only an Enter with nothing behind it sends.
        terminal.send("mark\r/exit\rless")
        terminal.wait_for(">>> mark\n... /exit\n... less")
        terminal.send(ENTER)
        terminal.wait_for("You said: mark\n/exit\nless.")
        terminal.wait_for(TOOLBAR)

        # What is pasted while the model speaks is not taken for questions. (A Ctrl-C would make the terminal
        # itself forget it.)
        terminal.send("pause" + ENTER)
        terminal.wait_for("so far")
        terminal.send("/exit\n/exit\n")
        server.resumed.set()
        terminal.wait_for(settled("so far and done."))
        terminal.wait_for(TOOLBAR)
        terminal.send("x")
        terminal.wait_for(">>> x\n")
        assert "/exit" not in terminal.text.split("so far")[1]
        terminal.send(CTRL_C)
        terminal.send(CTRL_D)
        assert terminal.end() == 0
        assert terminal.is_restored()
    assert len(server.requests) == count + 5
    assert not (tmp_path / ".local").exists()


def test_completion_search_and_resize(server: FakeServer, tmp_path: Path) -> None:
    picture = image_files()[0]
    history = tmp_path / ".local/state/owl_fast/history"
    history.parent.mkdir(parents=True)
    history.write_text('"what is a heron"\n"something else"\n')
    with chat(server, tmp_path) as terminal:
        terminal.send("/ima")
        terminal.wait_for(lambda text: text.count("/image") == 2)
        terminal.send("ge tests/golden/images/" + picture.name[:4] + TAB)
        terminal.wait_for(picture.name)
        terminal.send(ENTER)
        terminal.wait_for(f"picture 1: {picture.name}")
        terminal.wait_for("1 picture(s) waiting")
        terminal.send(CTRL_R + "heron")
        terminal.wait_for("what is a heron")
        terminal.resize(44, 20)
        terminal.wait_for(TOOLBAR)
        terminal.send(ENTER)
        terminal.wait_for(">>> what is a heron")
        terminal.send("\x05 that stands very still in the water" + ENTER)  # Ctrl-E: to the end of the line
        terminal.wait_for("[picture] what is a heron that")
        terminal.wait_for(TOOLBAR)
        terminal.send(CTRL_D)
        assert terminal.end() == 0
        assert terminal.is_restored()


def test_nothing_a_model_or_server_says_moves_the_terminal(server: FakeServer, tmp_path: Path) -> None:
    with chat(server, tmp_path) as terminal:
        terminal.send("attack" + ENTER)
        terminal.wait_for(settled("[2J]0;owned31mred[?25l done"))
        terminal.send("fail" + ENTER)
        failed = re.escape("says 500: [2J]0;owned31mred[?25l done")
        terminal.wait_for(lambda text: bool(re.search(rf"{failed}\n+>>> *(\n|$)", text)))
        terminal.send(CTRL_D)
        assert terminal.end() == 0
        for sequence in (b"\x1b]0;", b"\x9b", b"\x07", "\u202e".encode()):
            assert sequence not in terminal.seen
        assert terminal.is_restored()


def test_plain_redraws_nothing(server: FakeServer, tmp_path: Path) -> None:
    with chat(server, tmp_path, "--plain", ready=">>>") as terminal:
        terminal.send("hello" + ENTER)
        terminal.wait_for(settled("You said: hello."))
        terminal.send(pasted("one\n/exit\ntwo"))
        terminal.wait_for("two")
        terminal.send(ENTER)
        terminal.wait_for(settled("You said: one\n/exit\ntwo."))
        terminal.send(f'"""three{ENTER}four"""{ENTER}')
        terminal.wait_for(settled("You said: three\nfour."))
        terminal.send("count" + ENTER)
        terminal.wait_for("1 2 3")
        terminal.send(CTRL_C)
        terminal.wait_for("· cancelled")
        terminal.wait_for(lambda text: text.rstrip().endswith(">>>"))
        terminal.send("half a")
        terminal.wait_for(">>> half a")
        terminal.send(CTRL_C)
        terminal.wait_for(lambda text: text.rstrip().endswith(">>>"))
        terminal.send("/he" + TAB + ENTER)
        terminal.wait_for("/continue")
        terminal.send("/edit" + ENTER)
        terminal.wait_for(lambda text: text.rstrip().endswith(">>> count"))
        terminal.send(CTRL_C)
        terminal.wait_for(lambda text: text.rstrip().endswith(">>> count\n>>>"))
        terminal.send(CTRL_C)
        terminal.wait_for("The message stays as it was.")
        terminal.send(CTRL_C)
        terminal.wait_for("Ctrl-C once more leaves.")
        terminal.send(CTRL_C)
        assert terminal.end() == 0
        assert terminal.is_restored()
        # Nothing but the marking of pastes, and the moves of the line editor on its own line.
        sequences = set(re.findall(rb"\x1b[^a-zA-Z]*[a-zA-Z]", terminal.seen))
        assert sequences <= {b"\x1b[?2004h", b"\x1b[?2004l", b"\x1b[A", b"\x1b[C", b"\x1b[K"}


def test_a_terminal_that_obeys_nothing_gets_nothing_to_obey(server: FakeServer, tmp_path: Path) -> None:
    command = [*CHAT, "--url", server.url]
    with PtyTerminal(command, ROOT, environment(tmp_path, TERM="dumb")) as terminal:
        terminal.wait_for(">>>")
        terminal.send("hello" + ENTER)
        terminal.wait_for(settled("You said: hello."))
        terminal.send("one\n/exit\ntwo\n")  # a paste that nothing marks
        terminal.wait_for(settled("You said: one\n/exit\ntwo."))
        terminal.send(CTRL_D)
        assert terminal.end() == 0
        assert b"\x1b" not in terminal.seen
        assert terminal.is_restored()


# --- ended at any moment ---

SLOW_LOAD = """
import sys
import time
from owl_fast import Engine
def load(path, progress, **options):
    for done in (0, 25, 50):
        progress(done, 100)
        time.sleep(0.3)  # a bar is drawn ten times a second at most
    time.sleep(600)
Engine.from_pretrained = load
from owl_fast.chat import main
sys.exit(main([]))
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        pytest.param(CTRL_C, 130, id="ctrl-c"),
        pytest.param(signal.SIGTERM, 143, id="term"),
        pytest.param(signal.SIGHUP, 129, id="hup", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("moment", ["loading", "prompt", "answer"])
def test_the_terminal_is_given_back(
    server: FakeServer, tmp_path: Path, moment: str, end: str | signal.Signals, code: int
) -> None:
    command = [*CHAT, "--url", server.url] if moment != "loading" else [sys.executable, "-c", SLOW_LOAD]
    with PtyTerminal(command, ROOT, environment(tmp_path)) as terminal:
        if moment == "loading":
            terminal.wait_for("loading:  50%")
        else:
            terminal.wait_for(TOOLBAR)
        if moment == "answer":
            terminal.send("count" + ENTER)
            terminal.wait_for("1 2 3")
        if isinstance(end, str):
            terminal.send(end)
            if moment != "loading":  # here Ctrl-C stops, and only asks before it leaves
                terminal.wait_for("cancelled" if moment == "answer" else "once more")
                terminal.wait_for(TOOLBAR)
                terminal.send("x" + CTRL_C + CTRL_D)
                code = 0
        else:
            terminal.process.send_signal(end)
        assert terminal.end() == code
        assert terminal.is_restored()
        assert b"Traceback" not in terminal.seen


@pytest.mark.slow
def test_ctrl_c_at_any_moment_of_the_start(server: FakeServer, tmp_path: Path) -> None:
    """Keys sent at forty moments, from before Python runs to the first prompt."""
    for step in range(40):
        with PtyTerminal([*CHAT, "--url", server.url], ROOT, environment(tmp_path)) as terminal:
            pause = threading.Event()
            pause.wait(step * 0.08)
            terminal.send(CTRL_C)
            pause.wait(0.3)
            terminal.send(CTRL_D)
            assert terminal.end() in (0, 130, -signal.SIGINT), terminal.text
            assert terminal.is_restored()


def test_a_local_model_in_a_terminal(tmp_path: Path) -> None:
    """Loading, the ready line, a picture, statistics, all without a server."""
    model = Golden("micro").checkpoint
    command = [*CHAT, str(model), "--device", "cpu", "--max-tokens", "4", "-i", str(image_files()[0])]
    with PtyTerminal(command, ROOT, environment(tmp_path)) as terminal:
        text = terminal.wait_for(TOOLBAR)
        assert re.search(
            r"ready: checkpoint fp32 · cpu · \d+\.\d/\d+\.\d GiB · context 256 · \d+\.\d s", text
        )
        terminal.wait_for("1 picture(s) waiting")
        terminal.send("What is it?" + ENTER)
        text = terminal.wait_for(lambda text: "· length" in text and TOOLBAR in text)
        assert re.search(
            r"4 tok · [\d.]+ tok/s · first token \d+ ms \(image \d+ ms\) · context \d+/256", text
        )
        terminal.send("/exit" + ENTER)
        assert terminal.end() == 0
        assert terminal.is_restored()
