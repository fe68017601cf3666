"""Counts and ratios beside what they should be: python -m benchmarks.gate"""

from __future__ import annotations

import argparse
import os
import sys

EXAMPLES = """examples:
  make gate                     in the environment of `make test`
  python -m benchmarks.gate     about half a minute; needs Triton and libowl_cpu, no GPU

A count that was meant to move: put the lines that are printed into benchmarks/gate/table.py.
"""


def main(argv: list[str] | None = None) -> int:
    """0 when everything is as it should be, 1 when something moved or could not be checked."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.gate",
        description="Launches, calls and bytes against benchmarks/gate/table.py, and ratios of contenders "
        "against wide bounds. Exit code 1 when something moved or could not be checked.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args(argv)
    # One core, before torch counts them: threads that wait for each other would measure who else is there.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    from benchmarks.gate import report

    return report.run()


if __name__ == "__main__":
    sys.exit(main())
