"""What commands share that open a model: its flags, and how they end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from owl_fast.errors import OwlError, TooManyBadRows

if TYPE_CHECKING:
    from owl_fast.checkpoints import Source


def add_model_flags(parser: argparse._ActionsContainer, tokenizer: bool = True) -> None:
    """What a .pth file does not tell about itself."""
    add = parser.add_argument
    if tokenizer:
        add("--tokenizer", metavar="FILE", help="tokenizer.model of a .pth file")
    add("--vision-heads", type=int, metavar="N", help="of the vision tower, which a .pth does not tell")
    add("--abstractor-heads", type=int, metavar="N", help="of the abstractor, likewise")


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of checkpoints.open_source that were given."""
    names = ("tokenizer", "config", "vision_heads", "abstractor_heads")
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def open_model(args: argparse.Namespace) -> Source:
    """What is at args.model, a path or a hub id."""
    from owl_fast.checkpoints import open_source
    from owl_fast.hub import local_path

    return open_source(local_path(args.model), **model_options(args))


def ended(work: Callable[[], int | None]) -> int:
    """The exit code of a command: work's own, else 0; 130 after Ctrl-C.

    After an OwlError, said in one line, 1; 5 when more rows of data were bad than may be left out.
    """
    try:
        return work() or 0
    except OwlError as error:
        print(f"error: {error}", file=sys.stderr)
        return 5 if isinstance(error, TooManyBadRows) else 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
