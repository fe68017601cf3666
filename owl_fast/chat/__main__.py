"""`python -m owl_fast.chat`."""

from __future__ import annotations

import signal

if __name__ == "__main__":
    try:
        from owl_fast.chat.command import main

        code = main()
    except KeyboardInterrupt:
        code = 130
    # From here on Ctrl-C ends the process at once instead of printing a traceback from its last lines.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise SystemExit(code)
