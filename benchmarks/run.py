"""Run benchmark cases: python benchmarks/run.py load --json results.json"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when it is not installed

from benchmarks import harness, models, timing
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
    "contention": "contention",
    "load": "load",
    "quantization": "quantization",
    "data": "data",
    "train": "train",
    "serve": "serve",
}
UNTIMED = (
    "contention",
    "data",
    "kernel-resources",
    "load",
    "quantization",
)  # nothing in them is held against the device's rates
EXAMPLES = """examples:
  python benchmarks/run.py load --model tiny                  seconds; runs anywhere
  python benchmarks/run.py load --work-dir /data              a 7B folder: 15 GB of disk and of memory
  python benchmarks/run.py ops decode prefill vision load --device cuda --json benchmarks/results/NAME.json
  python benchmarks/run.py ops decode prefill vision --device cpu --model tiny
  python benchmarks/run.py vision ops decode prefill contention --device cpu --quant int4 --gguf /data/gguf
                                                              beside llama.cpp; 17 GB of memory, 8 of disk
  python benchmarks/run.py throughput --device cpu --model nano
                                                              many requests at once, caches, speculation
  python benchmarks/run.py throughput --device cpu --quant int4 --gguf /data/gguf
                                                              eight requests against one, beside llama.cpp
  python benchmarks/run.py serve --device cpu --model nano --plot load.svg
                                                              the server under load, beside others
  python benchmarks/run.py load --quant int4                  quantized while loading
  python benchmarks/run.py train --device cpu                 both stages beside transformers and peft
  python benchmarks/run.py quantization                       accuracy of int8 and int4; half an hour or less
  python benchmarks/run.py data --work-dir /data              training data: rows a second, memory
  python benchmarks/run.py kernel-resources                   GPU kernels compiled for six kinds of GPU
"""


def main(argv: list[str] | None = None) -> int:
    """0 when every case ran within its limits, 1 when kernels do not fit a GPU, 2 when a case cannot run."""
    args = _parser().parse_args(argv)
    if not args.work_dir.is_dir():
        _parser().error(f"--work-dir {args.work_dir}: no such folder")
    try:
        with _gguf_folder(args):
            rows = [found for case in args.cases for found in _case(case)(args)]
        if set(args.cases) - set(UNTIMED):
            rows = timing.machine(pick_device(args.device)).rows() + rows
    except OwlError as error:
        harness.fail(str(error))
    rows = harness.beside_ours(rows)
    if args.json is not None:
        args.json.write_text(json.dumps(harness.report(rows), indent=2) + "\n", encoding="utf-8")
    if rows:
        print(harness.table(rows))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks/run.py",
        description=f"Benchmark cases of owl_fast: {', '.join(CASES)}.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cases", nargs="+", choices=CASES, metavar="CASE", help=f"one of {', '.join(CASES)}")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s"
    )
    parser.add_argument(
        "--model",
        choices=models.NAMES,
        default="7b-random",
        help="sizes of the model, whose weights are random (default: %(default)s)",
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help="ops, kernel-resources: operations with TEXT in their name; throughput: parts (texts, pictures, "
        "guesses); serve: kinds of requests (text, one picture, different pictures)",
    )
    parser.add_argument(
        "--no-compile", action="store_true", help="leave out the peers of torch.compile, a minute each"
    )
    parser.add_argument(
        "--work-dir",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="where model folders are made (default: %(default)s)",
    )
    parser.add_argument(
        "--quant",
        choices=("none", "int8", "int4"),
        default="none",
        help="decode, prefill, throughput, serve, contention, load: how the weights are held",
    )
    parser.add_argument(
        "--gguf",
        type=Path,
        metavar="DIR",
        help="where llama.cpp's files are, or are written and left (default: made in --work-dir and removed)",
    )
    parser.add_argument(
        "--plot", type=Path, metavar="OUT", help="serve: draw latency against load into OUT.svg or OUT.png"
    )
    parser.add_argument("--keep", action="store_true", help="leave the folders that were made")
    parser.add_argument(
        "--json", type=Path, metavar="OUT", help="also write the rows with device and versions"
    )
    return parser


@contextmanager
def _gguf_folder(args: argparse.Namespace) -> Iterator[None]:
    """args.gguf is a folder within the block; one that nobody asked for is gone after it."""
    if args.gguf is not None:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="owl-gguf-", dir=args.work_dir) as folder:
        args.gguf = Path(folder)
        yield


def _case(name: str) -> Callable[[argparse.Namespace], list[harness.Row]]:
    try:
        return importlib.import_module(f"benchmarks.cases.{CASES[name]}").run
    except ModuleNotFoundError as error:
        harness.fail(f"{name} needs {error.name}, which is not installed: pip install {error.name}")


if __name__ == "__main__":
    sys.exit(main())
