"""The command: its arguments, what is asked of every row, and `check`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from owl_fast.command_line import add_data_flags, add_model_flags, ended
from owl_fast.errors import ParameterError
from owl_fast.settings import add_settings_flags, read_settings

if TYPE_CHECKING:
    from owl_fast.data.task import Task

EXAMPLES = """\
examples:
  python -m owl_fast.data check train.json                      the first bad rows, and how many of which kind
  python -m owl_fast.data check 'cc3m/{00000..00331}.tar' --model models/mplug-owl-llama-7b
  python -m owl_fast.data check coco/captions_train2017.json --images coco/train2017
  python -m owl_fast.data stats llava.json:0.7 alpaca.json:0.3
  python -m owl_fast.data stats captions.csv --columns image=filepath,caption=title
  python -m owl_fast.data shard llava.json --out shards --shard-mb 512 --shuffle

SPEC is PATH[:WEIGHT]: a file, a glob or files with {..} in their names. Its format is told by its content:
the original's JSONL, LLaVA, ShareGPT, OpenAI messages, Alpaca, Baize, webdataset tars, COCO captions,
OwlEval, CSV, TSV and Parquet. docs/data.md has an example of each.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m owl_fast.data",
        description="Look at training data before a run does.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("action", choices=["check", "stats", "shard"], help="find bad rows; count; write webdataset tars")
    add("specs", nargs="+", metavar="SPEC", help="PATH[:WEIGHT]")
    add_data_flags(parser)
    add("--model", metavar="MODEL", help="whose tokenizer and context count (default: owl-nano)")
    add("--max-length", type=int, metavar="N", help="tokens of a sample (default: the model's context)")
    add("--headers-only", action="store_true", help="do not decode pictures, only look at their headers")
    add("--first", type=int, default=10, metavar="N", help="bad rows that check prints (default: 10)")
    add("--workers", type=int, metavar="N", help="processes (default: one per core; 0: this one alone)")
    add("--out", metavar="DIR", help="shard: folder to write, new or empty")
    add("--shard-mb", type=int, default=256, metavar="N", help="shard: size of a file (default: 256)")
    add("--shuffle", action="store_true", help="shard: in another order, the same every time")
    add("--skip-bad", action="store_true", help="shard: leave bad rows out")
    add_model_flags(parser)
    add("--plain", action="store_true", help="no progress bar")
    add_settings_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """0; 1: bad rows, or data that cannot be read; 2: wrong usage; 5: past --bad-cap; 130: Ctrl-C."""
    parser = build_parser()
    args = read_settings(parser, argv)
    if (args.action == "shard") != (args.out is not None):
        parser.error("shard wants --out DIR" if args.action == "shard" else f"{args.action} writes no --out")

    def work() -> int:
        try:
            return _run(args)
        except ParameterError as error:
            parser.error(str(error))

    return ended(work)


def _run(args: argparse.Namespace) -> int:
    from owl_fast.data.shard import write_shards
    from owl_fast.data.stats import stats
    from owl_fast.data.task import open_task

    task = open_task(args)
    if args.action == "check":
        return check(task, args.first)
    if args.action == "stats":
        return stats(task)
    return write_shards(task, args.out, args.shard_mb, args.shuffle, args.bad_cap if args.skip_bad else None)


def check(task: Task, first: int) -> int:
    """Print the first bad rows of each dataset and the counts by reason; 1 when there are any."""
    from owl_fast.training.bad_rows import find_bad_rows

    bad = 0
    for dataset in task.datasets:
        found = find_bad_rows(dataset, task.use, workers=task.workers, keep=first, progress=task.progress)
        for message in found.first:
            print(message)
        print(f"{dataset.name} ({dataset.format}): {found}")
        bad += len(found.indices)
    return 1 if bad else 0
