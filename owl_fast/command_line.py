"""What commands share: the flags of a model and of training data, and how they end."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from owl_fast.errors import (
    DiskError,
    DivergedError,
    LockedError,
    OwlError,
    ParameterError,
    StoppedError,
    TooManyBadRows,
)

if TYPE_CHECKING:
    from owl_fast.checkpoints import Source


def add_model_flags(parser: argparse._ActionsContainer, tokenizer: bool = True) -> None:
    """What a .pth file does not tell about itself."""
    add = parser.add_argument
    if tokenizer:
        add("--tokenizer", metavar="FILE", help="tokenizer.model of a .pth file")
    add("--vision-heads", type=int, metavar="N", help="of the vision tower, which a .pth does not tell")
    add("--abstractor-heads", type=int, metavar="N", help="of the abstractor, likewise")


def add_loading_flags(parser: argparse._ActionsContainer) -> None:
    """MODEL, and how it is held."""
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="folder, .pth file or hub id (default: owl-nano)")
    add_model_flags(parser)
    add("--device", default="auto", help="auto (default), cuda, cuda:N or cpu")
    add("--dtype", default="auto", choices=["auto", "bf16", "fp16", "fp32"], help="of the weights")
    add(
        "--quant",
        default="auto",
        choices=["auto", "none", "int8", "int4"],
        help="of the language model's weights; auto (default): the largest precision that fits",
    )
    add("--vision", metavar="onnx:DIR", help="pictures go through what export.onnx wrote, in ONNX Runtime")
    add("--quant-vision", choices=["none", "int8"], help="of the vision tower's weights (default: none)")
    add(
        "--kv-cache",
        default="auto",
        choices=["auto", "int8"],
        help="keys and values of the conversation; int8 takes half the memory (default: as the weights)",
    )
    add(
        "--exact",
        action="store_true",
        help="on a GPU: an answer is the same to the bit, from the caches or computed anew; slower",
    )


# The flags of add_loading_flags that Engine.from_pretrained takes.
LOADING = (
    *("tokenizer", "vision_heads", "abstractor_heads", "device", "dtype", "quant", "quant_vision"),
    *("vision", "kv_cache", "exact", "config"),
)


def loading_options(args: argparse.Namespace) -> dict[str, Any]:
    """Those of Engine.from_pretrained that were given."""
    return {name: getattr(args, name) for name in LOADING if getattr(args, name) is not None}


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of checkpoints.open_source that were given."""
    names = ("tokenizer", "config", "vision_heads", "abstractor_heads")
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def open_model(args: argparse.Namespace) -> Source:
    """What is at args.model, a path or a hub id."""
    from owl_fast.checkpoints import open_source
    from owl_fast.hub import local_path

    return open_source(local_path(args.model), **model_options(args))


def add_data_flags(parser: argparse._ActionsContainer, bad_rows: bool = True) -> None:
    """How the files of a SPEC are read. bad_rows: whether they may be left out."""
    add = parser.add_argument
    add("--format", metavar="NAME", help="of the data, instead of what its content tells")
    add("--images", metavar="DIR", help="where picture paths start (default: each file's own folder)")
    add("--columns", metavar="OURS=THEIRS,...", help="names of columns, as in image=filepath,caption=title")
    if bad_rows:
        add(
            "--bad-cap",
            type=float,
            default=0.001,
            metavar="X",
            help="of --skip-bad: share of rows (default: 0.001)",
        )


def data_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of training.datasets.ReadOptions that were given; ParameterError."""
    pairs = [pair.partition("=") for pair in args.columns.split(",")] if args.columns else []
    for ours, _, theirs in pairs:
        if not ours or not theirs:
            raise ParameterError(f"--columns {args.columns}: wanted OURS=THEIRS,..., as in image=filepath")
    return {
        "format": args.format,
        "pictures": None if args.images is None else Path(args.images),
        "columns": {ours: theirs for ours, _, theirs in pairs},
    }


@contextmanager
def progress_bar(shown: bool, unit: str = "B", **options: Any) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; gives what is to be called with how many bytes, or other units, are done, and all.

    options: of tqdm.
    """
    from tqdm import tqdm

    with tqdm(unit=unit, unit_scale=unit == "B", disable=not shown, **options) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update


# With which code a command ends: schedulers and scripts act on it.
CODES: tuple[tuple[type[OwlError], int], ...] = (
    (DiskError, 3),
    (DivergedError, 4),
    (TooManyBadRows, 5),
    (LockedError, 6),
)
SIGNALLED = 128  # plus the number of the signal, as shells have it: 143 for SIGTERM, 130 for SIGINT


def exit_code(error: OwlError) -> int:
    """3 disk, 4 diverged, 5 too many bad rows, 6 locked, 130 and 143 stopped by a signal, 1 anything else."""
    if isinstance(error, StoppedError):
        return SIGNALLED + error.signal
    return next((code for kind, code in CODES if isinstance(error, kind)), 1)


def ended(work: Callable[[], int | None]) -> int:
    """The exit code of a command: work's own or 0; an OwlError's after one line; 130 after Ctrl-C."""
    try:
        return work() or 0
    except OwlError as error:
        print(f"error: {error}", file=sys.stderr)
        return exit_code(error)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return SIGNALLED + signal.SIGINT


def start(module: str) -> NoReturn:
    """What `python -m` does: the module's main(), and its exit code. Ctrl-C while it is being imported, or
    from its last lines, shows no traceback."""
    try:
        code = importlib.import_module(module).main()
    except KeyboardInterrupt:
        code = SIGNALLED + signal.SIGINT
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise SystemExit(code)
