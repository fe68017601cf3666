"""What is typed, read line by line without redrawing: for --plain and for terminals that can do no more.

What is pasted arrives as one text: through the terminal's bracketed paste, or, where it has none, because
more input waits behind a line.
"""

from __future__ import annotations

import functools
import readline
import select
import sys

from owl_fast.chat.completion import Completion
from owl_fast.chat.entry import CONTINUATION, PROMPT, in_block
from owl_fast.chat.history import History
from owl_fast.chat.terminal import is_dumb

# A paste is not highlighted (the setting before this one would switch that on); Alt-Enter puts a line end.
SETTINGS = ("tab: complete", "set enable-active-region off", r'"\e\C-m": "\C-v\C-j"')


class PlainKeyboard:
    def __init__(self, offers: Completion, history: History) -> None:
        self._offers, self._history = offers, history
        self._found: list[str] = []
        readline.set_completer(self._complete)
        readline.set_completer_delims("")
        readline.set_auto_history(False)
        for line in (f"set enable-bracketed-paste {'off' if is_dumb() else 'on'}", *SETTINGS):
            readline.parse_and_bind(line)
        for entry in history.entries:
            readline.add_history(entry)

    def read(self, draft: str = "") -> str:
        """The next entry, which begins with `draft`; EOFError for Ctrl-D, KeyboardInterrupt for Ctrl-C at an
        empty prompt."""
        entry = self._line(PROMPT, draft)
        while in_block(entry) or _more_waits():
            entry += "\n" + self._line(CONTINUATION)
        if entry.strip():
            self._history.add(entry)
            readline.add_history(entry)
        return entry

    def _line(self, prompt: str, draft: str = "") -> str:
        """One line; Ctrl-C with something typed begins it anew."""
        # Into a file or pipe go the answers alone.
        screen = sys.stdout if sys.stdout.isatty() else sys.stderr
        while True:
            readline.set_startup_hook(functools.partial(readline.insert_text, draft))
            try:
                if screen is sys.stdout:
                    return input(prompt)
                print(prompt, end="", file=screen, flush=True)
                return input()
            except EOFError:
                print(file=screen)
                raise
            except KeyboardInterrupt:
                print(file=screen)
                if not readline.get_line_buffer():
                    raise
                draft = ""
            finally:
                readline.set_startup_hook(None)

    def _complete(self, _text: str, state: int) -> str | None:
        if state == 0:
            line = readline.get_line_buffer()
            replaced, texts = self._offers(line)
            head = line[: len(line) - len(replaced)]
            self._found = [head + text for text in texts]
        return self._found[state] if state < len(self._found) else None


def _more_waits() -> bool:
    """Whether input is there already, which nobody can have typed so soon."""
    try:
        return bool(select.select([sys.stdin], [], [], 0)[0])
    except (OSError, ValueError):  # no terminal behind it
        return False
