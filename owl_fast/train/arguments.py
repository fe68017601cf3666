"""The arguments of `python -m owl_fast.train`, and what each stage takes where they are silent."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

from owl_fast.command_line import add_data_flags, add_model_flags
from owl_fast.settings import add_settings_flags, read_settings

EXAMPLES = """\
examples:
  python -m owl_fast.train --stage 1 --model models/owl --data "pairs/*.tar" --out runs/stage1 --plan
  python -m owl_fast.train --stage 2 --model runs/stage1/final --data llava.json:3 alpaca.json --out runs/2
  python -m owl_fast.train --stage 2 --model models/owl --quant int4 --data mine.jsonl --out runs/mine
  torchrun --nproc-per-node 2 -m owl_fast.train --stage 2 --model models/owl --data a.jsonl --out runs/a
  python -m owl_fast.train --config runs/mine/config.toml --resume auto     go on with what was stopped
  python -m owl_fast.chat runs/mine/final                        what stage 2 leaves is an adapter

Formats of data and bad rows: docs/data.md; which card for what: docs/training.md.

exit codes: 0 done, 1 error, 2 wrong usage, 3 no space for snapshots, 4 diverged, 5 too many bad rows,
6 another process has the folder, 130 after Ctrl-C, 143 stopped by SIGTERM (a snapshot was saved)
"""


class Defaults(NamedTuple):
    """Of a stage: the paper's (arXiv 2304.14178, section 4.1), else the public script's."""

    lr: float
    weight_decay: float
    warmup: int
    max_steps: int


DEFAULTS = {
    1: Defaults(lr=1e-4, weight_decay=0.1, warmup=2000, max_steps=50_000),
    2: Defaults(lr=2e-5, weight_decay=1e-4, warmup=50, max_steps=2_000),
}
BATCH_TOKENS, BATCH = 2_100_000, 256  # of an update: stage 1 counts tokens, stage 2 samples
NEEDED = ("stage", "model", "data", "out")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m owl_fast.train",
        description="Train the vision side on captions (stage 1), or tune a model to instructions (stage 2).",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_what(parser.add_argument_group("what"))
    _add_data(parser.add_argument_group("data"))
    _add_course(parser.add_argument_group("course"))
    _add_memory(parser.add_argument_group("memory and speed"))
    _add_seen(parser.add_argument_group("what is seen"))
    add_settings_flags(parser)
    return parser


def read_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Flags over --config over the stage's own values; leaves with 2 when something is wrong or missing."""
    parser = build_parser()
    args = read_settings(parser, argv)
    missing = [f"--{name}" for name in NEEDED if not getattr(args, name)]
    if missing:
        parser.error(f"wanted: {', '.join(missing)}")
    if args.batch is not None and args.batch_tokens is not None:
        parser.error("--batch counts samples, --batch-tokens tokens; give one of them")
    for name, value in DEFAULTS[args.stage]._asdict().items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.batch is None and args.batch_tokens is None:
        args.batch, args.batch_tokens = (None, BATCH_TOKENS) if args.stage == 1 else (BATCH, None)
    return args


def _add_what(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--stage",
        type=int,
        choices=[1, 2],
        help="1: vision tower and abstractor; 2: LoRA and abstractor",
    )
    add("--model", metavar="MODEL", help="folder, .pth file or hub id to begin with")
    add("--out", metavar="DIR", help="folder of the run")
    add_model_flags(group)
    add("--lora-rank", type=int, default=8, metavar="N", help="stage 2 (default: 8)")
    add("--lora-alpha", type=float, default=32.0, metavar="X", help="stage 2 (default: 32)")
    add("--lora-dropout", type=float, default=0.05, metavar="X", help="stage 2 (default: 0.05)")
    add(
        "--lora-targets",
        nargs="+",
        default=[],
        metavar="NAME",
        help="stage 2: ends of module names, or one regular expression (default: the LLaMA's q_proj, v_proj)",
    )
    add("--no-train-abstractor", action="store_true", help="stage 2: LoRA alone, as the public script trains")
    add("--full", action="store_true", help="stage 2: the whole LLaMA instead of LoRA")


def _add_data(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--data",
        nargs="+",
        default=[],
        metavar="SPEC",
        help="PATH[:WEIGHT]: a file, a glob, or files with {..} in their names",
    )
    add("--eval-data", nargs="+", default=[], metavar="SPEC", help="its loss is measured at every evaluation")
    add_data_flags(group)
    add(
        "--max-length",
        type=int,
        default=2048,
        metavar="N",
        help="tokens of a sample, pictures included (default: 2048)",
    )
    add("--template", action="store_true", help="stage 1: captions as answers in a conversation")
    add(
        "--no-crops",
        action="store_true",
        help="stage 1: whole pictures, never mirrored: for documents, text, left and right",
    )
    add("--skip-bad", action="store_true", help="leave bad rows out and count them")
    add("--workers", type=int, default=2, metavar="N", help="processes that read pictures (default: 2)")


def _add_course(group: argparse._ArgumentGroup) -> None:
    def by_stage(flag: str, kind: type, what: str) -> None:
        name = flag.removeprefix("--").replace("-", "_")
        values = ", ".join(f"{getattr(DEFAULTS[stage], name):g}" for stage in (1, 2))
        group.add_argument(
            flag, type=kind, metavar="X" if kind is float else "N", help=f"{what} (default: {values})"
        )

    add = group.add_argument
    by_stage("--max-steps", int, "updates, of stage 1 and 2")
    add("--batch", type=int, metavar="N", help=f"samples of an update (default of stage 2: {BATCH})")
    add(
        "--batch-tokens",
        type=int,
        metavar="N",
        help="tokens of an update, pictures' included: as many samples as take so many on average "
        f"(default of stage 1: {BATCH_TOKENS:,})",
    )
    by_stage("--lr", float, "highest learning rate")
    add(
        "--tower-lr-factor",
        type=float,
        default=1.0,
        metavar="X",
        help="stage 1: the vision tower's learning rate is X times --lr (default: 1)",
    )
    by_stage("--warmup", int, "updates up to it; a cosine leads down to 0")
    by_stage("--weight-decay", float, "of every trained tensor")
    add("--clip", type=float, default=1.0, metavar="X", help="largest gradient norm (default: 1)")
    add("--seed", type=int, default=0, metavar="N", help="of the order of samples, of LoRA and of dropout")
    add("--save-every", type=int, default=500, metavar="N", help="updates between snapshots (default: 500)")
    add("--keep", type=int, default=2, metavar="N", help="snapshots that are kept (default: 2)")
    add("--eval-every", type=int, default=500, metavar="N", help="updates between evaluations (default: 500)")
    add(
        "--resume",
        choices=["auto", "never"],
        default="never",
        help="auto: go on from the newest snapshot in --out",
    )
    add(
        "--data-changed-ok",
        action="store_true",
        help="resume although files of the data are not what they were",
    )


def _add_memory(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--plan", action="store_true", help="print what the run will take, and leave")
    add(
        "--quant",
        choices=["none", "int8", "int4"],
        default="none",
        help="how frozen language weights are held",
    )
    add(
        "--micro-batch",
        type=int,
        metavar="N",
        help="samples at once (default: what takes least time in --memory)",
    )
    add("--memory", type=float, metavar="GB", help="what the run may take (default: what is free)")
    add(
        "--optimizer",
        choices=["adamw", "adamw8bit", "muon"],
        default="adamw",
        help="8bit: states in a quarter of the memory; muon: fewer updates, when whole matrices train",
    )
    add("--feature-cache", metavar="DIR", help="stage 2: keep the vision tower's outputs on disk")
    add("--device", default="auto", help="auto (default), cuda, cuda:N or cpu")
    add(
        "--dtype", default="auto", choices=["auto", "bf16", "fp32"], help="of frozen weights and of computing"
    )


def _add_seen(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--samples",
        type=int,
        default=4,
        metavar="N",
        help="answers written to samples.md at evaluations (default: 4)",
    )
    add("--tensorboard", action="store_true", help="write its event files, too")
    add("--plain", action="store_true", help="no progress bar")
