"""What is typed, read with prompt_toolkit: editing over several lines, history, completion, a status line.

Enter sends; Alt-Enter, or any Enter inside a block begun with three quotes, starts a new line. What is pasted
arrives as one text: through the terminal's bracketed paste, or, where it has none, because more keys wait
behind an Enter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import Condition, has_focus
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import History as PromptHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.key_binding.key_processor import KeyPress
from prompt_toolkit.keys import Keys
from prompt_toolkit.styles import Style

from owl_fast.chat.completion import Completion as Offers
from owl_fast.chat.completion import common_start
from owl_fast.chat.entry import CONTINUATION, PROMPT, in_block
from owl_fast.chat.history import History
from owl_fast.chat.text import safe

STYLE = Style.from_dict({
    "prompt": "bold ansicyan",
    "bottom-toolbar": "noreverse ansibrightblack",
    "completion-menu": "bg:#3a3f4b #d8d8d8",
    "completion-menu.completion.current": "noreverse bg:#4fc1d9 #000000",
    "completion-menu.meta.completion": "bg:#2c3039 #a0a0a0",
    "completion-menu.meta.completion.current": "bg:#2c3039 #d8d8d8",
})  # fmt: skip


class Keyboard:
    """status: the line below the input, asked anew at each key."""

    def __init__(self, offers: Offers, history: History, status: Callable[[], str]) -> None:
        self._status = status
        self._session: PromptSession[str] = PromptSession(
            multiline=True,
            key_bindings=_bindings(offers),
            completer=_Completer(offers),
            complete_while_typing=Condition(_names_a_command),
            history=_Shown(history),
            prompt_continuation=_continuation,
            bottom_toolbar=self._toolbar,
            style=STYLE,
            enable_suspend=True,
        )

    def read(self, draft: str = "") -> str:
        """The next entry, which begins with `draft`; EOFError for Ctrl-D, KeyboardInterrupt for Ctrl-C, both
        at an empty prompt."""
        return self._session.prompt(FormattedText([("class:prompt", PROMPT)]), default=draft)

    def _toolbar(self) -> FormattedText:
        return FormattedText([("", safe(self._status()))])


class _Shown(PromptHistory):
    """Our history as prompt_toolkit reads it: newest first."""

    def __init__(self, history: History) -> None:
        super().__init__()
        self._ours = history

    def load_history_strings(self) -> Iterable[str]:
        return reversed(self._ours.entries)

    def store_string(self, string: str) -> None:
        self._ours.add(string)


class _Completer(Completer):
    def __init__(self, offers: Offers) -> None:
        self._offers = offers

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        replaced, texts = self._offers(document.text_before_cursor)
        for text in texts:
            help = self._offers.help.get(text)
            yield Completion(text, -len(replaced), display=_last_part(text), display_meta=help)


def _bindings(offers: Offers) -> KeyBindings:
    bindings = KeyBindings()
    typing = has_focus(DEFAULT_BUFFER)  # and not in a search

    @bindings.add("enter", filter=typing)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if in_block(buffer.text) or any(map(_is_typed, event.key_processor.input_queue)):
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter", filter=typing)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @bindings.add("tab", filter=typing)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        choosing = buffer.complete_state is not None and buffer.complete_state.current_completion is not None
        replaced, texts = offers(buffer.document.text_before_cursor)
        common = common_start(texts)[len(replaced) :]
        if common and not choosing:
            buffer.insert_text(common)
        elif buffer.complete_state:
            buffer.complete_next()
        else:
            buffer.start_completion()

    @bindings.add("c-c", filter=typing)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.text:
            buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt(), style="class:aborting")

    return bindings


def _continuation(width: int, line: int, wraps: int) -> str:
    """What stands before a line but the first; one that was only wrapped is none."""
    return " " * width if wraps else CONTINUATION


def _names_a_command() -> bool:
    text = get_app().current_buffer.text
    return text.startswith("/") and " " not in text


def _last_part(path: str) -> str:
    """Of a path, what a list of completions shows."""
    head, slash, _ = path.rstrip("/").rpartition("/")
    return path[len(head) + len(slash) :] if head else path


def _is_typed(key: KeyPress) -> bool:
    """Text or an Enter, not a terminal's answer or prompt_toolkit's own mark."""
    return key.key == Keys.Enter or (key.data.isprintable() and key.data != "_Flush")
