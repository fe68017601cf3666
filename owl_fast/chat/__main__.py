"""`python -m owl_fast.chat`."""

from __future__ import annotations

import signal

from owl_fast.chat.command import main

if __name__ == "__main__":
    code = main()
    # From here on Ctrl-C ends the process at once instead of printing a traceback from its last lines.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise SystemExit(code)
