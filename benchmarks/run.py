"""Run benchmark cases: python benchmarks/run.py load --json results.json"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, when it is not installed

from benchmarks import harness
from benchmarks.cases import kernel_resources, load

CASES = {"kernel-resources": kernel_resources.run, "load": load.run}
EXAMPLES = """examples:
  python benchmarks/run.py load --size tiny                   seconds; runs anywhere
  python benchmarks/run.py load --work-dir /data              a 7B folder: 15 GB of disk and of memory
  python benchmarks/run.py load --json benchmarks/results/load.json
  python benchmarks/run.py kernel-resources                   GPU kernels compiled for six kinds of GPU
"""


def main(argv: list[str] | None = None) -> int:
    """0 when every case ran within its limits, 2 with one line on stderr when not."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/run.py",
        description=f"Benchmark cases of owl_fast: {', '.join(CASES)}.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cases", nargs="+", choices=CASES, metavar="CASE", help=f"one of {', '.join(CASES)}")
    parser.add_argument(
        "--size", choices=("7b", "tiny"), default="7b", help="model size (default: %(default)s)"
    )
    parser.add_argument(
        "--work-dir",
        type=Path,
        default=Path(tempfile.gettempdir()),
        help="where model folders are made (default: %(default)s)",
    )
    parser.add_argument("--keep", action="store_true", help="leave the folders that were made")
    parser.add_argument(
        "--json", type=Path, metavar="OUT", help="also write the rows with device and versions"
    )
    args = parser.parse_args(argv)
    if not args.work_dir.is_dir():
        parser.error(f"--work-dir {args.work_dir}: no such folder")
    rows = [found for case in args.cases for found in CASES[case](args)]
    print(harness.table(rows))
    if args.json is not None:
        args.json.write_text(json.dumps(harness.report(rows), indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
