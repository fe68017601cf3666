"""`python -m owl_fast.serve`."""

from __future__ import annotations

from owl_fast.command_line import start

if __name__ == "__main__":
    start("owl_fast.serve.command")
