"""Which evaluation is meant: each is a module of this folder with a parser of its own."""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = """\
examples:
  python -m owl_fast.evaluate owleval models/mplug-owl-llama-7b --data owleval --out study
  python -m owl_fast.evaluate owleval rate study owleval/answer
  python -m owl_fast.evaluate owleval report study
  python -m owl_fast.evaluate nano
  python -m owl_fast.evaluate vqa models/mplug-owl-llama-7b --data vqa.jsonl --out scores

Each of them has a --help of its own.
"""
# The words of an evaluation -> (its module, what it does).
EVALUATIONS = {
    "owleval": ("owleval", "answer OwlEval's questions"),
    "owleval rate": ("rate", "rate answers without knowing whose they are, in a local web page"),
    "owleval judge": ("judge", "have a model behind an OpenAI-compatible server rate them"),
    "owleval report": ("report", "the paper's figures and tables from answers and ratings"),
    "nano": ("nano", "owl-nano's held-out questions, task by task"),
    "caption": ("caption", "captions against references: BLEU and CIDEr"),
    "vqa": ("vqa", "short answers against references: VQA accuracy and exact match"),
}


def build_parser() -> argparse.ArgumentParser:
    """Of the first word alone."""
    width = max(map(len, EVALUATIONS))
    listed = "\n".join(f"  {name:<{width}}  {what}" for name, (_, what) in EVALUATIONS.items())
    parser = argparse.ArgumentParser(
        prog="python -m owl_fast.evaluate",
        description=f"How good a model is.\n\n{listed}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = list(dict.fromkeys(name.split()[0] for name in EVALUATIONS))
    parser.add_argument("evaluation", choices=names, help="one of the above, with arguments of its own")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The evaluation's exit code: 0; 1 when it cannot be made; 2: wrong usage; 130 after Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    _check_second(words)
    for count in (2, 1):
        if found := EVALUATIONS.get(" ".join(words[:count])):
            module = importlib.import_module(f"owl_fast.evaluate.{found[0]}")
            return int(module.main(words[count:]))
    build_parser().parse_args(words[:1])
    return 2  # not reached: the parser has said what is wanted


def _check_second(words: Sequence[str]) -> None:
    """Leaves with 2 for a second word that is nearly one of ours, and no path: it would become MODEL."""
    typed = " ".join(words[:2])
    names = [name for name in EVALUATIONS if " " in name]
    close = difflib.get_close_matches(typed, names, n=1, cutoff=0.8) if len(words) > 1 else []
    if close and typed not in names and not Path(words[1]).exists():
        build_parser().error(f"no evaluation {typed!r}; did you mean {close[0]!r}?")
