"""`python -m owl_fast.train`: from arguments to a finished run folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from owl_fast.command_line import ended
from owl_fast.train.arguments import read_arguments


def main(argv: Sequence[str] | None = None) -> int:
    """What the epilog of --help says of exit codes."""
    args = read_arguments(argv)
    return ended(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    from owl_fast.train.run import train

    folder = train(args)
    if folder is not None:
        print(f"{folder} is there; try: python -m owl_fast.chat {folder}", file=sys.stderr)
