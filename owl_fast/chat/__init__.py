"""Ask a model about pictures in the terminal: `python -m owl_fast.chat [MODEL]`.

    command    from the arguments to one answer or a conversation
    session    what was said and what waits; asks a backend (local: an Engine, remote: a server)
    commands   what begins with a slash
    screen     what is shown; keyboard: what is typed; each plain or with redrawing

Answers go to stdout, everything else to stderr. Exit codes: 0 done, 1 error, 2 wrong usage, 130 interrupted.
"""

from owl_fast.chat.arguments import build_parser
from owl_fast.chat.command import main

__all__ = ["build_parser", "main"]
