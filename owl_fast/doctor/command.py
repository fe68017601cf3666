"""The command: its arguments, and its report on stdout."""

from __future__ import annotations

import argparse
import gc
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from owl_fast.command_line import ended, model_options
from owl_fast.settings import add_settings_flags, read_settings

if TYPE_CHECKING:
    from owl_fast.checkpoints import Source
    from owl_fast.doctor.pairs import PairScores

EXAMPLES = """\
examples:
  python -m owl_fast.doctor                                what is installed, what is missing
  python -m owl_fast.doctor models/mplug-owl-llama-7b      sizes of a model and the memory it takes
  python -m owl_fast.doctor instruction_tuned.pth --tokenizer tokenizer.model
                                                           also whether it sees with 8 or with 16 heads

A .pth file does not tell how many attention heads its vision tower and abstractor have. It is loaded with 8
and with 16, and the captions of a few plain pictures are scored under their own and under similar pictures:
with the right number a caption is likeliest under its own.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m owl_fast.doctor",
        description="What is installed here, and what a model is and needs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="folder, .pth file or hub id")
    add("--tokenizer", metavar="FILE", help="tokenizer.model of a .pth file")
    add("--vision-heads", type=int, metavar="N", help="known already; only the others are tried")
    add("--abstractor-heads", type=int, metavar="N", help="likewise")
    add("--device", default="auto", help="where a .pth is scored: auto (default), cuda, cuda:N or cpu")
    add("--dtype", default="auto", choices=["auto", "bf16", "fp16", "fp32"], help="in which precision")
    add(
        "--quant",
        default="auto",
        choices=["auto", "none", "int8", "int4"],
        help="how a chat is to hold the language model's weights; auto (default): what fits",
    )
    add("--quant-vision", choices=["none", "int8"], help="the vision tower's (default: none)")
    add_settings_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all that is needed is there and the model can be read, else 1; 2 for wrong usage."""
    args = read_settings(build_parser(), argv)
    return ended(lambda: _report(args))


def _report(args: argparse.Namespace) -> int:
    from owl_fast.doctor.software import machine_rows, package_rows

    if args.model is None:
        _print("machine", machine_rows())
        packages, complete = package_rows()
        _print("software", packages)
        return 0 if complete else 1
    from owl_fast.checkpoints import open_source
    from owl_fast.doctor.model import source_rows, taken_row
    from owl_fast.hub import local_path

    path = local_path(args.model)
    told = model_options(args)
    source = open_source(path, **told)
    taken = taken_row(source.config, args.device, args.dtype, args.quant, args.quant_vision)
    _print(args.model, [*source_rows(source), taken])
    if path.is_file() or None in source.told_heads:
        _score(source, args, told)
    return 0


def _score(source: Source, args: argparse.Namespace, told: dict[str, Any]) -> None:
    """Load the model with each possible number of heads and say which fits."""
    from owl_fast.doctor.model import candidates
    from owl_fast.doctor.pairs import ranking, score_pairs, stands_out
    from owl_fast.engine.engine import Engine

    scores: dict[str, PairScores] = {}
    for heads in candidates(source):
        print(f"loading {args.model} ({heads}) ...", file=sys.stderr)
        options = {**told, "vision_heads": heads.vision, "abstractor_heads": heads.abstractor}
        engine = Engine.from_pretrained(
            args.model,
            device=args.device,
            dtype=args.dtype,
            quant=args.quant,
            quant_vision=args.quant_vision,
            max_context=512,
            max_batch=1,
            **options,
        )
        scores[str(heads)] = score_pairs(engine)
        # Two 7B models at once are more than most machines hold.
        del engine
        gc.collect()
    rows = [
        (name, f"{s.found} of {len(s.chosen)} pictures found by their captions, {math.exp(s.mean):.1%} sure")
        for name, s in scores.items()
    ]
    _print("pictures and captions", rows)
    best = ranking(scores)[0]
    if 2 * scores[best].found <= len(scores[best].chosen):
        print("It hardly sees; something else is wrong, or it does not know such pictures.")
    elif len(scores) > 1:
        print(f"Likelier: {best}." if stands_out(scores) else f"Likelier: {best}, but by little.")


def _print(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """A titled table of two columns."""
    width = max(len(name) for name, _ in rows)
    lines = (f"  {name:<{width}}  {text}\n" for name, text in rows)
    print(f"{title}\n\n{''.join(lines)}")
