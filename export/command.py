"""What the commands that export share: where they write, what they read, and how they end."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from owl_fast.command_line import SIGNALLED, add_model_flags, ended, open_model, progress_bar
from owl_fast.errors import CheckpointError, ParameterError
from owl_fast.settings import add_settings_flags

if TYPE_CHECKING:
    from owl_fast.checkpoints import Source
    from owl_fast.config import OwlConfig

# Parts of a model that the language model does without.
VISION_PARTS = ("vision_model", "abstractor")
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def add_shared_flags(parser: argparse.ArgumentParser, tokenizer: bool = True) -> None:
    """What every export takes, behind what is its own. tokenizer: whether it needs that of a .pth."""
    add_model_flags(parser, tokenizer=tokenizer)
    parser.add_argument("--plain", action="store_true", help="no progress")
    add_settings_flags(parser)


def exported(work: Callable[[], None]) -> int:
    """0 when all is written, 1 after one line about what is wrong, 130 after Ctrl-C, 143 after SIGTERM; what
    was begun is cleared away first."""
    came: list[int] = []

    def leave(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    def run() -> None:
        try:
            with unbroken():
                import torch  # noqa: F401
            work()
        except Exception:
            if came:  # a library has made another exception of ours
                raise KeyboardInterrupt from None
            raise

    with _handled(leave):
        code = ended(run)
    return SIGNALLED + came[0] if code and came else code


@contextmanager
def unbroken() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block ends; a second one does not.

    For native code that calls Python, as modules do while they are imported: an exception that a handler
    raises in there becomes another one, or the end of the process, with files left behind.
    """
    came: list[int] = []

    def wait(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            signal.signal(number, before[number])
            signal.raise_signal(number)

    with _handled(wait) as before:
        yield
    if came:
        signal.raise_signal(came[0])


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[dict[int, Any]]:
    """Signals go to this handler, but those that are ignored; gives the handlers before."""
    known = {number: signal.getsignal(number) for number in SIGNALS}
    before: dict[int, Any] = {number: old for number, old in known.items() if old is not signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, handler)
        yield before
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def new_folder(name: str) -> Path:
    """The folder to write; CheckpointError for a link, and unless it is new or empty."""
    from owl_fast.checkpoints.writer import check_new

    folder = _no_link(name)
    check_new(folder)  # before minutes of work
    return folder


def new_file(name: str, ending: str) -> Path:
    """The file to write; CheckpointError if something has its name, or it ends otherwise."""
    from owl_fast.checkpoints.writer import check_new_file

    file = _no_link(name)
    if file.suffix != ending:
        raise ParameterError(f"--out {name}: wanted a file whose name ends in {ending}")
    check_new_file(file)
    return file


def _no_link(name: str) -> Path:
    path = Path(name)
    if path.is_symlink():
        raise CheckpointError(f"{path}: a link; name what it leads to, or something new")
    return path


def check_room(path: Path, nbytes: int) -> None:
    """CheckpointError unless the disk where `path` is to be has so many bytes free."""
    from owl_fast.summary import size_text

    there = next(parent for parent in path.absolute().parents if parent.exists())
    if (free := shutil.disk_usage(there).free) < nbytes:
        raise CheckpointError(
            f"{path}: takes {size_text(nbytes)}, and {size_text(free)} are free; make room or choose "
            "another disk"
        )


def dense_numbers(config: OwlConfig, part: str | tuple[str, ...] = "") -> int:
    """How many the dense model has, or the part of it whose names begin so."""
    from owl_fast.checkpoints.load import empty_model

    weights = empty_model(replace(config, quantization=None)).named_parameters()
    return sum(weight.numel() for name, weight in weights if name.startswith(part))


def plain_source(args: argparse.Namespace) -> Source:
    """The model at args.model; ParameterError for an adapter."""
    source = open_model(args)
    if source.adapter is not None:
        raise ParameterError(
            f"{args.model}: an adapter; merge it first, and export what "
            f"python -m owl_fast.export.merged BASE {args.model} --out DIR writes"
        )
    return source


def bar(
    total: int, args: argparse.Namespace, unit: str = "B"
) -> AbstractContextManager[Callable[[int, int], None]]:
    return progress_bar(not args.plain, unit, total=total)


def say(args: argparse.Namespace, text: str) -> None:
    if not args.plain:
        print(text, file=sys.stderr, flush=True)
