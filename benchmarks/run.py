"""Run benchmark cases: python benchmarks/run.py load --json results.json"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when it is not installed

from tqdm import tqdm

from benchmarks import compare, harness, models, report, suites, timing
from benchmarks.steps import OURS
from owl_fast.command_line import SIGNALLED
from owl_fast.engine.placement import pick_device
from owl_fast.errors import OwlError

# Case -> its module under benchmarks/cases, imported when it is asked for: not every case runs everywhere.
CASES = {
    "kernel-resources": "kernel_resources",
    "ops": "operations",
    "decode": "decode",
    "prefill": "prefill",
    "throughput": "throughput",
    "vision": "vision",
    "memory": "memory",
    "contention": "contention",
    "load": "load",
    "quantization": "quantization",
    "data": "data",
    "train": "train",
    "serve": "serve",
}
# Nothing in them is held against the device's rates.
UNTIMED = {"contention", "data", "kernel-resources", "load", "memory", "quantization"}
EXAMPLES = """examples:
  python benchmarks/run.py --suite quick --json now.json --html now.html
                                                              under five minutes on two cores
  python benchmarks/run.py --suite full --json full.json --gguf /data/gguf
                                                              7B shapes: hours on a CPU, 17 GB of memory
  python benchmarks/run.py ops vision --suite quick           two cases of a suite
  python benchmarks/run.py --html all.html --with benchmarks/results/*.json
                                                              a report of results; nothing is run
  python benchmarks/run.py --compare before.json after.json   what moved beyond the noise
  python benchmarks/run.py load --model tiny                  seconds; runs anywhere
  python benchmarks/run.py decode prefill --quant int4 --gguf /data/gguf
                                                              beside llama.cpp; 17 GB of memory, 8 of disk
  python benchmarks/run.py decode --model MODEL --peers transformers,compile
                                                              a folder's sizes; only such peers
  python benchmarks/run.py ops decode prefill vision load --device cuda --json benchmarks/results/NAME.json
"""


class MissingPackage(OwlError):
    """A case cannot run without it; in a suite such a case is absent, as a peer is."""


def main(argv: list[str] | None = None) -> int:
    """0 when every case ran, 1 when one of a suite did not; 2 for what cannot be done, 130 after Ctrl-C."""
    parser = _parser()
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _stop)
    try:
        _check_outputs(args)
        if args.compare is not None:
            if args.cases or args.suite or args.json or args.beside:
                parser.error("--compare runs nothing; beside it there is --html alone")
            return _compare(args)
        beside = [report.read(path) for path in args.beside]
        with _gguf_folder(args):
            parts = list(_parts(args, parser))
            measured, failed = _measured(parts, args)
        if measured:
            print(harness.table(measured))
        documents = [harness.report(measured)] if parts else []
        if args.html is not None:
            report.write(args.html, [*documents, *beside])
            print(f"written: {args.html}", file=sys.stderr)
    except OwlError as error:
        harness.fail(str(error))
    except KeyboardInterrupt:
        return SIGNALLED + signal.SIGINT
    return 1 if failed else 0


def _stop(number: int, frame: object) -> NoReturn:
    """As Ctrl-C does: servers and folders that were made go with the run."""
    sys.exit(SIGNALLED + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks/run.py",
        description=f"Benchmark cases of owl_fast: {', '.join(CASES)}.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cases", nargs="*", type=_named, metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument(
        "--suite",
        choices=suites.NAMES,
        help="its cases, or those named of it: quick (owl-nano, minutes) or full (7B, all cases, hours)",
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s"
    )
    parser.add_argument(
        "--model",
        type=_model,
        metavar="MODEL",
        help=f"sizes of the model, whose weights are random: {', '.join(models.NAMES)} or a folder with a "
        "config.json (default: 7b-random)",
    )
    parser.add_argument(
        "--quant",
        choices=("none", "int8", "int4"),
        help="how the weights of the language model are held (default: none)",
    )
    parser.add_argument(
        "--peers",
        type=_names,
        metavar="NAME,...",
        help="only peers with one of these in their names; the others are listed as left out",
    )
    parser.add_argument(
        "--only",
        metavar="TEXT",
        help="ops, kernel-resources: operations with TEXT in their name; throughput: parts (texts, pictures, "
        "guesses); serve: kinds of requests (text, one picture, different pictures)",
    )
    parser.add_argument(
        "--no-compile",
        action="store_const",
        const="left out by --no-compile",
        help="leave out the peers of torch.compile, a minute each",
    )
    parser.add_argument(
        "--work-dir",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="where model folders are made (default: %(default)s)",
    )
    parser.add_argument(
        "--gguf",
        type=Path,
        metavar="DIR",
        help="where llama.cpp's files are, or are written and left (default: made in --work-dir and removed)",
    )
    parser.add_argument("--keep", action="store_true", help="leave the folders that were made")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the rows, for --with and --compare")
    parser.add_argument("--html", type=Path, metavar="OUT", help="write a report with figures, one file")
    parser.add_argument(
        "--with",
        dest="beside",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="--html: results of other runs and machines beside this one's; without a case nothing is run",
    )
    parser.add_argument(
        "--compare",
        type=Path,
        nargs=2,
        metavar=("BEFORE", "AFTER"),
        help="two results: what moved by more than the noise seen in both; nothing is run",
    )
    return parser


def _named(text: str) -> str:
    """argparse's choices refuse that none is named."""
    if text not in CASES:
        raise argparse.ArgumentTypeError(f"{text}: no such case; there are {', '.join(CASES)}")
    return text


def _model(text: str) -> str:
    """A name, or a folder."""
    if text not in models.NAMES and not (Path(text) / "config.json").is_file():
        names = ", ".join(models.NAMES)
        raise argparse.ArgumentTypeError(f"{text}: neither one of {names} nor a folder with a config.json")
    return text


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _check_outputs(args: argparse.Namespace) -> None:
    """What could only fail at the end of a long run fails before it."""
    if not args.work_dir.is_dir():
        raise OwlError(f"--work-dir {args.work_dir}: no such folder")
    outputs = [path for path in (args.json, args.html) if path is not None]
    files = [path.resolve() for path in (*outputs, *args.beside, *(args.compare or ()))]
    for path in outputs:
        if not path.absolute().parent.is_dir():
            raise OwlError(f"{path}: its folder does not exist; make it first")
        if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
            raise OwlError(f"{path}: not a file that can be written")
        if files.count(path.resolve()) > 1:
            raise OwlError(f"{path} would be overwritten; --json and --html take names of their own")
    if args.html is not None:
        report.check_packages()


def _parts(args: argparse.Namespace, parser: argparse.ArgumentParser) -> Iterator[argparse.Namespace]:
    """The settings of each case, in the order they run."""
    given = {name: value for name in suites.DEFAULTS if (value := getattr(args, name)) is not None}
    if args.suite is None:
        if not args.cases and (args.json or not (args.beside and args.html)):
            parser.error("name a CASE or a --suite; or results and a report: --with FILE ... --html OUT")
        for case in args.cases:
            yield argparse.Namespace(**{**vars(args), **suites.DEFAULTS, **given, "case": case})
        return
    if given:
        names = ", ".join("--" + name.replace("_", "-") for name in given)
        parser.error(f"{names}: a suite has its own; name cases without --suite instead")
    parts = list(suites.parts(args.suite, pick_device(args.device)))
    if left_out := set(args.cases) - {case for case, _ in parts}:
        parser.error(f"{', '.join(sorted(left_out))}: not in the suite {args.suite}")
    for case, settings in parts:
        if not args.cases or case in args.cases:
            yield argparse.Namespace(**{**vars(args), **suites.DEFAULTS, **settings, "case": case})


def _measured(
    parts: Sequence[argparse.Namespace], args: argparse.Namespace
) -> tuple[list[harness.Row], list[str]]:
    """The rows of all cases, and the cases of a suite that failed: they must not take the others with them.
    What is measured is written case by case."""
    rows: list[harness.Row] = []
    failed: list[str] = []
    weights = None
    for part in tqdm(parts, "suite", leave=False, disable=None if args.suite else True):
        if weights != (part.model, part.quant):
            models.random_model.cache_clear()  # else one model serves all cases
            weights = part.model, part.quant
        run = functools.partial(_run, part)
        start = time.monotonic()
        found = run() if args.suite is None else timing.attempt(run)
        if args.suite is not None:
            tqdm.write(f"{part.case}: {time.monotonic() - start:.0f} s", file=sys.stderr)
        if isinstance(found, str):
            tqdm.write(f"error: {part.case}: {found}", file=sys.stderr)
            failed.append(part.case)
            found = [harness.absent(part.case, "", OURS, "", "", found)]
        rows += found
        if {part.case for part in parts} - UNTIMED and not any(row.case == "machine" for row in rows):
            rows = timing.machine(pick_device(args.device)).rows() + rows
        if args.json is not None:
            harness.write_whole(
                args.json, json.dumps(harness.report(harness.beside_ours(rows)), indent=2) + "\n"
            )
    return harness.beside_ours(rows), failed


def _compare(args: argparse.Namespace) -> int:
    before, after = (report.read(path) for path in args.compare)
    changes = compare.compare(before, after)
    if args.html is not None:
        report.write(args.html, [before, after], changes)
    print(compare.table(before, after, changes))
    return 0


@contextmanager
def _gguf_folder(args: argparse.Namespace) -> Iterator[None]:
    """args.gguf is a folder within the block; one that nobody asked for is gone after it."""
    if args.gguf is not None:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="owl-gguf-", dir=args.work_dir) as folder:
        args.gguf = Path(folder)
        yield


def _run(args: argparse.Namespace) -> list[harness.Row]:
    try:
        return _case(args.case)(args)
    except MissingPackage as error:
        if args.suite is None:
            raise
        return [harness.absent(args.case, "", OURS, "", "", str(error))]


def _case(name: str) -> Callable[[argparse.Namespace], list[harness.Row]]:
    try:
        return importlib.import_module(f"benchmarks.cases.{CASES[name]}").run
    except ModuleNotFoundError as error:
        reason = f"{name} needs {error.name}, which is not installed: pip install {error.name}"
        raise MissingPackage(reason) from None


if __name__ == "__main__":
    sys.exit(main())
